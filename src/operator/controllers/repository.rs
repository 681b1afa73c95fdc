//! Repository: creates one repository of a registry, keeps it as its manifest says, and releases
//! it.

use std::sync::Arc;
use std::time::Duration;

use super::external::ExternalKind;
use super::finish::Update;
use super::{KindController, NamespaceChange, plan_for};
use crate::context::Context;
use crate::kind::{Kind, status_fields};
use crate::plan_input::PlanInput;
use crate::policy_rule::{PolicyRule, own_kind};
use crate::registry_client::{Freshness, LockedRepository, RegistryClient, RegistryError};
use crate::status::Cause;
use crate::watch::Change;
use kube::ResourceExt as _;
use wharfage_apply::RepositoryNeeds;
use wharfage_crd::{Managed as _, Reason, Registry, Repository, RepositoryStatus};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::model::{ApiError, ErrorKind, ObservedRepository};
use wharfage_plan::ownership::Ownership;
use wharfage_plan::{
    Desired, FieldChange, Object, Plan, desired_in_cluster, differences, on_removal, unenforced,
};

impl Kind for Repository {
    const NAME: &'static str = "Repository";

    fn registry_name(&self) -> &str {
        &self.spec.registry_ref.name
    }

    fn is_suspended(&self) -> bool {
        self.suspended()
    }

    fn sync_interval(&self) -> Duration {
        self.interval()
    }

    fn claimed_name(&self) -> Option<String> {
        self.repository_name().ok().map(|it| it.to_string())
    }
}

status_fields!(RepositoryStatus, events: false, last_sync: |self, now| self.last_sync_time = Some(now));

/// Reconciles Repositories.
pub(crate) struct RepositoryController {
    ctx: Arc<Context>,
}

impl KindController for RepositoryController {
    type Kind = Repository;
    const CONCURRENCY: u16 = 32;

    fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }

    fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    fn rules() -> Vec<PolicyRule> {
        own_kind(&["repositories"], &["repositories/status"]).to_vec()
    }

    /// Requeues the Repositories that claim the name of one that is being deleted.
    fn changed(&self, change: &Change<Repository>) {
        let Some(repository) = change.either().filter(|_| change.leaves()) else { return };
        let Some(name) = repository.claimed_name() else { return };
        let claiming = self.ctx.stores.repositories.claiming(&name);
        let rivals = claiming.iter().filter(|it| it.uid() != repository.uid());
        self.ctx.triggers.requeue_all(rivals.map(|it| &**it));
    }

    /// Requeues the Repositories of the namespace: `allowedNamespaces` selects its labels.
    fn namespace_changed(&self, change: &NamespaceChange) {
        let Some(namespace) = change.either() else { return };
        let repositories = self.ctx.stores.repositories.in_namespace(&namespace.name_any());
        self.ctx.triggers.requeue_all(repositories.iter().map(|it| &**it));
    }
}

impl ExternalKind for RepositoryController {
    type Name = RepositoryName;
    type Locked = LockedRepository;

    fn name(repository: &Repository) -> Result<RepositoryName, Cause> {
        let invalid = |error| {
            Cause::new(Reason::InvalidParameterException, format!("{error}: set repositoryName"))
        };
        repository.repository_name().map_err(invalid)
    }

    async fn lock(client: &Arc<RegistryClient>, name: &RepositoryName) -> LockedRepository {
        client.repository(name).await
    }

    fn needs(repository: &Repository) -> RepositoryNeeds {
        RepositoryNeeds {
            policy: repository.spec.repository_policy.is_some(),
            ..RepositoryNeeds::default()
        }
    }

    fn desired(&self, registry: &Registry, name: &RepositoryName) -> Desired {
        let input = PlanInput::new(&self.ctx.stores, &self.ctx.registry_clients, registry, name);
        desired_in_cluster(&input, registry, &self.ctx.settings.cluster)
    }

    fn plan(desired: &Desired, name: &RepositoryName, found: Option<ObservedRepository>) -> Plan {
        plan_for(desired, name, found)
    }

    fn differences(
        desired: &Desired,
        resource: &Object,
        found: Option<&ObservedRepository>,
    ) -> Vec<FieldChange> {
        let wanted = desired.repositories.iter().find(|it| it.object == *resource);
        wanted.zip(found).map(|(wanted, found)| differences(wanted, found)).unwrap_or_default()
    }

    fn notes(registry: &Registry, desired: &Desired, resource: &Object) -> Vec<String> {
        let wanted = desired.repositories.iter().find(|it| it.object == *resource);
        wanted.map(|wanted| unenforced(registry, wanted)).unwrap_or_default()
    }

    fn is_stale(error: &ApiError) -> bool {
        matches!(error.kind, ErrorKind::RepositoryAlreadyExists | ErrorKind::RepositoryNotFound)
    }

    fn prepare_release(repository: &Repository, found: &mut ObservedRepository) {
        let mut ownership = Ownership::read(&found.tags);
        ownership.manages.on_removal = on_removal(repository);
        found.tags.extend(ownership.tags());
    }

    fn deletes(repository: &Repository) -> bool {
        repository.deletes()
    }

    async fn read_status(
        locked: &mut LockedRepository,
        freshness: Freshness,
    ) -> Result<Update<RepositoryStatus>, RegistryError> {
        let Some(listed) = locked.as_listed() else { return Ok(Box::new(|_| {})) };
        let images = match locked.usage(freshness).await {
            Ok(usage) => Some(usage),
            Err(error @ RegistryError::Unavailable(_)) => return Err(error),
            // Counting images needs a separate permission.
            Err(RegistryError::Rejected(error)) => {
                tracing::debug!(repository = listed.arn, %error, "images cannot be counted");
                None
            }
        };
        Ok(Box::new(move |status| {
            status.repository_arn = Some(listed.arn);
            status.repository_uri = Some(listed.uri);
            status.registry_id = Some(listed.registry_id);
            if let Some(images) = images {
                status.image_count = Some(images.images);
                status.image_size_bytes = Some(images.bytes);
                status.finding_severity_counts = images.findings;
            }
        }))
    }
}
