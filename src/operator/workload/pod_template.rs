//! The pods: one container that runs `wharfage serve`, with the fewest rights.

use aws_lc_rs::hmac;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapEnvSource, Container, ContainerPort, EnvFromSource, EnvVar,
    EnvVarSource, HTTPGetAction, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    SeccompProfile, SecretEnvSource, SecretKeySelector, SecretVolumeSource, SecurityContext,
    TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use secrecy::ExposeSecret as _;

use super::config_map::{DATA, DELAY_SECONDS, GRACE_SECONDS, TLS};
use super::volume_claim::TEMPLATE;
use super::{ADMIN_PORT, REGISTRY_PORT, Shape, WorkloadBuilder, given, listed, tls_secret};
use crate::secrets::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};

/// The names of the ports.
pub(super) const REGISTRY: &str = "registry";
/// See [`REGISTRY`].
pub(super) const ADMIN: &str = "admin";

/// The user and group of the pods, which nothing on a node has.
const USER: i64 = 65532;
/// The time in which a pod must end, beyond the time that the process allows itself.
const MARGIN_SECONDS: i64 = 10;
/// The annotation with a fingerprint of settings and secrets: it makes a change of those a rollout.
const SETTINGS: &str = "wharfage.dev/settings";

impl WorkloadBuilder<'_> {
    pub(super) fn pods(&self) -> PodTemplateSpec {
        let pod = self.managed.pod.clone().unwrap_or_default();
        let mut labels = pod.labels;
        labels.extend(self.names.labels());
        let mut annotations = pod.annotations;
        annotations.insert(SETTINGS.to_owned(), self.settings());
        let ends_within = match self.shape() {
            Shape::Replicated => i64::from(GRACE_SECONDS + DELAY_SECONDS) + MARGIN_SECONDS,
            Shape::Single(_) => i64::from(GRACE_SECONDS) + MARGIN_SECONDS,
        };
        let spread = pod.topology_spread_constraints.unwrap_or_else(|| self.spread());
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                automount_service_account_token: Some(false),
                enable_service_links: Some(false),
                // Always set: after a removal, the deprecated field serviceAccount would keep the old name.
                service_account_name: Some(
                    pod.service_account_name.unwrap_or_else(|| "default".to_owned()),
                ),
                image_pull_secrets: listed(&pod.image_pull_secrets),
                priority_class_name: pod.priority_class_name,
                node_selector: given(&pod.node_selector),
                tolerations: listed(&pod.tolerations),
                affinity: pod.affinity,
                topology_spread_constraints: listed(&spread),
                termination_grace_period_seconds: Some(ends_within),
                security_context: Some(PodSecurityContext {
                    run_as_non_root: Some(true),
                    run_as_user: Some(USER),
                    run_as_group: Some(USER),
                    fs_group: Some(USER),
                    // A volume of many files is not walked at every start.
                    fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                    seccomp_profile: Some(SeccompProfile {
                        type_: "RuntimeDefault".to_owned(),
                        ..SeccompProfile::default()
                    }),
                    ..PodSecurityContext::default()
                }),
                containers: vec![self.container()],
                volumes: self.certificate_volume().map(|volume| vec![volume]),
                ..PodSpec::default()
            }),
        }
    }

    fn container(&self) -> Container {
        Container {
            name: REGISTRY.to_owned(),
            image: Some(self.inputs.image.clone()),
            args: Some(vec!["serve".to_owned()]),
            env: Some(vec![
                self.root_key_variable("WHARFAGE_ACCESS_KEY_ID", ACCESS_KEY_ID),
                self.root_key_variable("WHARFAGE_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
            ]),
            env_from: Some(self.variable_sources()),
            ports: Some(vec![port(REGISTRY, REGISTRY_PORT), port(ADMIN, ADMIN_PORT)]),
            resources: self.managed.resources.clone(),
            // Migrations of a large database run before the first answer.
            startup_probe: Some(probe("/healthz", 2, 1, 300)),
            liveness_probe: Some(probe("/healthz", 10, 5, 6)),
            // Longer than the registry itself waits for its stores.
            readiness_probe: Some(probe("/readyz", 5, 7, 2)),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    ..Capabilities::default()
                }),
                ..SecurityContext::default()
            }),
            // The last output of the process explains its end best.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: listed(&self.mounts()),
            ..Container::default()
        }
    }

    fn variable_sources(&self) -> Vec<EnvFromSource> {
        let config = EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource {
                name: self.names.config(),
                ..ConfigMapEnvSource::default()
            }),
            ..EnvFromSource::default()
        };
        let backends = (!self.secret_variables().is_empty()).then(|| EnvFromSource {
            secret_ref: Some(SecretEnvSource {
                name: self.names.backends(),
                ..SecretEnvSource::default()
            }),
            ..EnvFromSource::default()
        });
        [Some(config), backends].into_iter().flatten().collect()
    }

    fn root_key_variable(&self, variable: &str, key: &str) -> EnvVar {
        let source =
            SecretKeySelector { name: self.names.root_key(), key: key.to_owned(), optional: None };
        EnvVar {
            name: variable.to_owned(),
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(source),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }
    }

    fn mounts(&self) -> Vec<VolumeMount> {
        let mount = |name: &str, path: &str, read_only: Option<bool>| VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            read_only,
            ..VolumeMount::default()
        };
        let data = matches!(self.shape(), Shape::Single(_)).then(|| mount(TEMPLATE, DATA, None));
        let tls = self.managed.tls.is_some().then(|| mount("tls", TLS, Some(true)));
        data.into_iter().chain(tls).collect()
    }

    /// Mounts the whole Secret, not single files: only then does a node update a renewed certificate in a running pod.
    fn certificate_volume(&self) -> Option<Volume> {
        let secret = SecretVolumeSource {
            secret_name: Some(tls_secret(self.managed, &self.names)?),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        };
        Some(Volume { name: "tls".to_owned(), secret: Some(secret), ..Volume::default() })
    }

    /// Spreads replicas over hosts and zones as far as possible.
    fn spread(&self) -> Vec<TopologySpreadConstraint> {
        let over = |key: &str| TopologySpreadConstraint {
            topology_key: key.to_owned(),
            max_skew: 1,
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(self.chosen_pods()),
            ..TopologySpreadConstraint::default()
        };
        if self.may_have_replicas() {
            vec![over("kubernetes.io/hostname"), over("topology.kubernetes.io/zone")]
        } else {
            Vec::new()
        }
    }

    /// Returns a fingerprint of everything that the pods read at their start. It is keyed with the root key's secret, so that
    /// nobody can try passwords against it.
    fn settings(&self) -> String {
        let root_key = &self.inputs.root_key;
        let mut tag = hmac::Context::with_key(&hmac::Key::new(
            hmac::HMAC_SHA256,
            root_key.secret.expose_secret().as_bytes(),
        ));
        let secrets = self.secret_variables();
        let secrets = secrets.iter().map(|(name, value)| (*name, value.expose_secret()));
        let config = self.variables();
        let config = config.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in config.chain(secrets).chain([(ACCESS_KEY_ID, root_key.id.as_str())]) {
            for text in [name, value] {
                tag.update(&(text.len() as u64).to_be_bytes());
                tag.update(text.as_bytes());
            }
        }
        hex::encode(&tag.sign().as_ref()[..8])
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_seconds: i32, timeout_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(timeout_seconds),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}
