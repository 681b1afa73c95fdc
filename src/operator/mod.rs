//! The operator: the same manifests as file mode, reconciled by Kubernetes.

pub mod leader;
