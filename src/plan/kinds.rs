//! The kinds of objects that a plan manages. A new kind is a module that implements [`ObjectKind`], and a line in the list
//! at the end of this file.

use std::collections::BTreeSet;

use super::context::PlanContext;
use super::lifecycle_policy::LifecyclePolicyKind;
use super::model::{
    DesiredLifecyclePolicy, DesiredRepository, Observations, ObservedRepository, Refused,
};
use super::ownership::LifecycleOwner;
use super::repository::{RepositoryCall, RepositoryKind};
use super::resources::ManifestInput;
use super::settings::{DesiredSettings, ObservedSettings, SettingsCall, SettingsKind};
use super::{Object, Plan, Step, identity};
use wharfage_domain::names::RepositoryName;

/// One kind of object: how its desired state is read from manifests, and how it is planned.
pub(crate) trait ObjectKind {
    /// Adds the desired state of this kind, with its refusals and notes.
    fn read(input: &ManifestInput<'_>, desired: &mut Desired);

    /// Plans what the manifests ask for. Kinds are planned in the order of the list.
    fn plan<'a>(context: &mut PlanContext<'a>, plan: &mut Plan);

    /// Returns the steps that release or delete what no manifest asks for any more. Nothing by default, for kinds whose owner
    /// is not recorded.
    fn release(_context: &PlanContext<'_>) -> Vec<Step> {
        Vec::new()
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $field:ident: $kind:ty {
        desired: $desired:ty
        $(, $(#[$observed_doc:meta])* observed: $observed:ty)?
        $(; $(#[$call_doc:meta])* call: $variant:ident($call:ty))?
    },)*) => {
        /// The desired state of one registry: what the manifests ask for.
        #[derive(Debug, Clone, Default)]
        pub struct Desired {
            /// The identity that plans: a cluster's name, or an identity of file mode. The owner of what the plan creates.
            pub cluster: String,
            /// Another owner. Repositories that it owns are adopted if a manifest names them.
            pub adopt_from: Option<String>,
            /// The Registry resource's name.
            pub registry: String,
            $($(#[$doc])* pub $field: $desired,)*
            /// Every resource of the manifests, including those of other registries: what any of them owns is never an orphan.
            pub declared: BTreeSet<Object>,
            /// Repositories that keep what the tags record as theirs: it is not known yet whether they are for this registry.
            pub pending_owners: BTreeSet<Object>,
            /// Resources that cannot be planned. Objects that they own already are left unchanged.
            pub refused: Vec<Refused>,
            /// Sentences about fields that have no effect here.
            pub notes: Vec<String>,
        }

        /// The observed state of one registry, as far as the desired state needs it.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Observed {
            $($($(#[$observed_doc])* pub $field: $observed,)?)*
        }

        /// One call of the ECR API. A step's calls run in order, and each may be repeated.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Call {
            $($($(#[$call_doc])* $variant($call),)?)*
        }

        $($(impl From<$call> for Call {
            fn from(call: $call) -> Self {
                Self::$variant(call)
            }
        })?)*

        /// Reads the desired state of every kind.
        pub(crate) fn read(input: &ManifestInput<'_>, desired: &mut Desired) {
            $(<$kind>::read(input, desired);)*
        }

        /// Plans every kind, in the order of the list.
        fn plan_kinds(context: &mut PlanContext<'_>, plan: &mut Plan) {
            $(<$kind>::plan(context, plan);)*
        }

        /// Returns what every kind releases, in the reverse order of the list.
        fn release_kinds(context: &PlanContext<'_>) -> Vec<Step> {
            let mut steps = Vec::new();
            $(steps.splice(0..0, <$kind>::release(context));)*
            steps
        }
    };
}

/// Returns the changes that make a registry match the manifests.
///
/// Steps come in the order in which they can be executed: settings, repositories, lifecycle
/// policies, then releases and deletions. The plan changes nothing whose tags record another owner.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut context = PlanContext::new(desired, observed);
    let mut plan =
        Plan { refused: desired.refused.clone(), notes: desired.notes.clone(), ..Plan::default() };
    plan_kinds(&mut context, &mut plan);
    let mut released = release_kinds(&context);
    // The sort is stable: of one object, a kind that depends on another is released before it.
    released.sort_by(|a, b| (a.action, &a.key).cmp(&(b.action, &b.key)));
    plan.steps.extend(released);
    plan
}

impl Call {
    /// Returns the call about a repository, if it is one.
    pub fn repository(&self) -> Option<&RepositoryCall> {
        match self {
            Self::Repository(call) => Some(call),
            _ => None,
        }
    }
}

impl Desired {
    /// Returns whether this identity plans, or is the one to adopt from.
    pub(crate) fn is_ours(&self, cluster: &str) -> bool {
        identity::same_owner(cluster, &self.cluster) || self.adopts_from(cluster)
    }

    /// Returns whether repositories of this identity are adopted.
    pub(crate) fn adopts_from(&self, cluster: &str) -> bool {
        self.adopt_from.as_deref().is_some_and(|from| identity::same_owner(cluster, from))
    }

    /// Returns whether `owner` is the LifecyclePolicy of this name, and ours.
    pub(crate) fn is_our_policy(&self, owner: &LifecycleOwner, object: &Object) -> bool {
        self.is_ours(&owner.cluster) && owner.names(object)
    }

    /// Returns the end of a sentence that says how to get what another identity owns, where a flag of file mode does it.
    pub(crate) fn adoption_hint(&self, cluster: &str) -> String {
        if identity::is_file_mode(&self.cluster) {
            format!(", or adopt it with --adopt-from {}", identity::owner(cluster))
        } else {
            String::new()
        }
    }
}

kinds! {
    /// The settings of the registry as a whole.
    settings: SettingsKind {
        desired: DesiredSettings,
        /// The settings that the desired state has.
        observed: ObservedSettings;
        /// A call about the registry as a whole.
        call: Settings(SettingsCall)
    },
    /// The repositories, in the order of precedence.
    repositories: RepositoryKind {
        desired: Vec<DesiredRepository>,
        /// The repositories of the registry, with their lifecycle policies.
        observed: Observations<RepositoryName, ObservedRepository>;
        /// A call about one repository.
        call: Repository(RepositoryCall)
    },
    /// The lifecycle policies, in the order of precedence.
    lifecycle_policies: LifecyclePolicyKind { desired: Vec<DesiredLifecyclePolicy> },
}
