//! PullSecret: creates Secrets for pulling in the selected namespaces, renews them, and deletes
//! them.

mod outcome;
mod service_accounts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use tokio::task::JoinSet;

use super::converge::{Drift, failed};
use super::finish::Outcome;
use super::interrupted::Interrupted;
use super::reconcile::{Reconcile, Reconciler};
use super::{
    Error, KindController, LastSync, NamespaceChange, REQUEUE_WAITING, jittered, registry_missing,
    registry_not_ready,
};
use crate::context::Context;
use crate::kind::{Kind, status_fields};
use crate::policy_rule::{Feature, PolicyRule, RuleScope, own_kind};
use crate::pull_secrets::accounts::{self, WatchedServiceAccount};
use crate::pull_secrets::annotations::{CLASS, HeldSecret, annotations, source};
use crate::pull_secrets::claims::{Claims, Namespace, Namespaces, claims};
use crate::pull_secrets::decide::{Entry, SecretInputs, decide};
use crate::pull_secrets::docker_config::SECRET_KEY;
use crate::pull_secrets::tokens::{Issued, Tokens, not_yet};
use crate::registry_client::RegistryClient;
use crate::secrets::{
    OwnedSecret, SecretDeletion, SecretName, SecretOwner, SecretPlace, SecretWrite, SecretWriter,
    WatchedSecret, WriteReason,
};
use crate::status::{Cause, ConditionSet, ReadyState};
use crate::watch::{Change, any_change, watch_kind};
use crate::workload;
use outcome::{REQUEUE_CONFLICT, Secrets, some};
use wharfage_apply::{authorization_token, host as host_of};
use wharfage_crd::{PullSecret, PullSecretStatus, Reason, Registry};

impl Kind for PullSecret {
    const NAME: &'static str = "PullSecret";

    fn registry_name(&self) -> &str {
        &self.spec.registry_ref.name
    }

    fn is_suspended(&self) -> bool {
        self.suspended()
    }

    fn sync_interval(&self) -> Duration {
        REQUEUE_WAITING
    }
}

status_fields!(PullSecretStatus, events: false, last_sync: |self, _now| {});

const RULES: &[PolicyRule] = &{
    let [objects, status] = own_kind(&["pullsecrets"], &["pullsecrets/status"]);
    [
        objects,
        status,
        PolicyRule {
            group: "",
            resources: &["secrets"],
            verbs: &["get", "list", "watch", "create", "patch", "delete"],
            scope: RuleScope::Cluster,
            feature: Feature::PullSecrets,
            reason: "Secrets to pull with, in the namespaces that PullSecrets choose; only those that it labeled are watched",
        },
        PolicyRule {
            group: "",
            resources: &["serviceaccounts"],
            verbs: &["get", "list", "watch", "patch"],
            scope: RuleScope::Cluster,
            feature: Feature::PullSecrets,
            reason: "imagePullSecrets of the service accounts that PullSecrets name",
        },
    ]
};

const DISABLED: &str =
    "PullSecrets are disabled in this operator: enable them where it was installed";

/// The delay after which a registry whose Pods are being replaced is asked for a token again.
const TOKEN_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// The number of concurrent requests to the API server for one PullSecret.
const CONCURRENT_REQUESTS: usize = 8;

/// Reconciles PullSecrets.
pub(crate) struct PullSecretController {
    ctx: Arc<Context>,
    /// The tokens for the Secrets.
    tokens: Tokens,
}

impl PullSecretController {
    fn requeue(&self, which: impl Fn(&PullSecret) -> bool) {
        requeue(&self.ctx, which);
    }
}

impl KindController for PullSecretController {
    type Kind = PullSecret;
    const CONCURRENCY: u16 = 4;

    fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, tokens: Tokens::default() }
    }

    fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    fn rules() -> Vec<PolicyRule> {
        RULES.to_vec()
    }

    /// Requeues the PullSecrets with the same Secret name, now or before.
    fn changed(&self, change: &Change<PullSecret>) {
        let Some(pull_secret) = change.either() else { return };
        let both = [&change.old, &change.new];
        let names: BTreeSet<String> =
            both.into_iter().flatten().map(|it| it.secret_name()).collect();
        self.requeue(|other| {
            other.uid() != pull_secret.uid() && names.contains(&other.secret_name())
        });
    }

    /// Requeues the PullSecrets that choose the namespace, now or before, and those in it:
    /// `allowedNamespaces` selects its labels.
    fn namespace_changed(&self, change: &NamespaceChange) {
        let Some(namespace) = change.either().map(|it| it.name_any()) else { return };
        let labels = || {
            [&change.old, &change.new].into_iter().flatten().map(|it| it.metadata.labels.as_ref())
        };
        self.requeue(|it| {
            it.namespace().as_ref() == Some(&namespace)
                || labels().any(|labels| it.chooses(&namespace, labels))
        });
    }
}

fn requeue(ctx: &Context, which: impl Fn(&PullSecret) -> bool) {
    ctx.triggers
        .requeue_all(ctx.stores.pull_secrets.state().iter().map(|it| &**it).filter(|it| which(it)));
}

/// Watches the Secrets of PullSecrets, and the service accounts.
pub(crate) fn watch_secrets(
    ctx: &Arc<Context>,
    secrets: Writer<WatchedSecret>,
    service_accounts: Writer<WatchedServiceAccount>,
    watches: &mut JoinSet<()>,
) {
    let (api, labeled) =
        (Api::all(ctx.client.clone()), watcher::Config::default().labels(CLASS.label));
    let context = Arc::clone(ctx);
    let on_change = move |change| secret_changed(&context, &change);
    watches.spawn(watch_kind(api, labeled, secrets, any_change, on_change));
    let (api, context) = (Api::all(ctx.client.clone()), Arc::clone(ctx));
    let on_change = move |change| service_account_changed(&context, &change);
    watches.spawn(watch_kind(
        api,
        watcher::Config::default(),
        service_accounts,
        accounts::meaning,
        on_change,
    ));
}

/// Requeues the PullSecrets that own, or owned, a Secret that changed.
fn secret_changed(ctx: &Context, change: &Change<WatchedSecret>) {
    let both = [&change.old, &change.new];
    let owners =
        both.into_iter().flatten().flat_map(|it| CLASS.owners(it)).collect::<BTreeSet<_>>();
    requeue(ctx, |it| owners.contains(&SecretOwner::of(it).label_value()));
}

/// Requeues the PullSecrets that belong in a service account that is new or lists other Secrets.
fn service_account_changed(ctx: &Context, change: &Change<WatchedServiceAccount>) {
    let Some(account) = &change.new else { return };
    let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
    let found = ctx.stores.namespace(&namespace);
    let labels = found.as_ref().and_then(|it| it.metadata.labels.as_ref());
    requeue(ctx, |it| it.spec.service_accounts.contains(&name) && it.chooses(&namespace, labels));
}

impl Reconciler for PullSecretController {
    /// Nothing: a PullSecret deletes Secrets without its Registry, too, so it looks that up where
    /// it needs a token.
    type Inputs = ();

    fn dereference(&self, _reconcile: &Reconcile<'_, PullSecret>) -> Result<(), Interrupted> {
        Ok(())
    }

    fn needs_finalizer(&self, _pull_secret: &PullSecret) -> bool {
        self.ctx.settings.has(Feature::PullSecrets)
    }

    async fn apply(
        &self,
        reconcile: &Reconcile<'_, PullSecret>,
        (): (),
    ) -> Result<Outcome<PullSecretStatus>, Interrupted> {
        let reconcile = PullSecretReconcile::new(self, reconcile.object);
        if !self.ctx.settings.has(Feature::PullSecrets) {
            let cause = Cause::new(Reason::PullSecretsDisabled, DISABLED);
            let why_not = Some(ConditionSet::of(ReadyState::Stalled(cause)));
            return Ok(reconcile.outcome(Secrets { why_not, ..Secrets::default() }));
        }
        let secrets = reconcile.run().await?;
        Ok(reconcile.outcome(secrets))
    }

    async fn release(&self, reconcile: &Reconcile<'_, PullSecret>) -> Result<(), Interrupted> {
        if !self.ctx.settings.has(Feature::PullSecrets) {
            // Without permissions for Secrets the deletion is not blocked.
            let note =
                format!("{DISABLED}; the Secrets that it made stay until somebody deletes them");
            self.ctx.events.warning(reconcile.object, Reason::PullSecretsDisabled, note).await;
            return Ok(());
        }
        PullSecretReconcile::new(self, reconcile.object).delete_all().await
    }

    fn must_release(&self, _pull_secret: &PullSecret) -> bool {
        true
    }
}

/// One reconcile of a PullSecret.
struct PullSecretReconcile<'a> {
    ctx: &'a Context,
    tokens: &'a Tokens,
    pull_secret: &'a PullSecret,
    owner: SecretOwner,
    secret_name: String,
    service_accounts: BTreeSet<String>,
}

impl<'a> PullSecretReconcile<'a> {
    fn new(controller: &'a PullSecretController, pull_secret: &'a PullSecret) -> Self {
        Self {
            owner: SecretOwner::of(pull_secret),
            secret_name: pull_secret.secret_name(),
            service_accounts: pull_secret.spec.service_accounts.iter().cloned().collect(),
            ctx: &controller.ctx,
            tokens: &controller.tokens,
            pull_secret,
        }
    }

    async fn run(&self) -> Result<Secrets, Error> {
        let now = Timestamp::now();
        let registry = self.ctx.stores.registry(&self.pull_secret.spec.registry_ref.name);
        let registry_client =
            self.ctx.registry_clients.get(&self.pull_secret.spec.registry_ref.name);
        let registry_client = registry_client.filter(|_| registry.is_some());
        let host =
            registry.as_ref().and_then(|it| workload::told_url(it, &self.ctx.settings.namespace));
        let host = host.and_then(|url| host_of(&url));
        let source = registry_client
            .as_ref()
            .map(|registry_client| source(registry_client.ecr().identity(), host.as_deref()));

        let marked: Vec<HeldSecret> =
            self.ctx.stores.pulled.state().iter().filter_map(|it| HeldSecret::read(it)).collect();
        let Claims { served, taken, not_allowed, refused } = self.claims(&marked);
        let requested = self.pull_secret.requested();
        let issued = self.tokens.get(&self.owner);
        // New credentials, or a request to reconcile that the current token does not handle.
        let must_renew = issued.as_ref().map_or(requested.is_some(), |issued| {
            registry_client.as_ref().is_some_and(|it| it.fingerprint() != issued.registry_client)
                || (requested.is_some() && requested != issued.asked)
        });
        let at_hand = issued.filter(|issued| !must_renew && issued.serves(source.as_deref(), now));
        let held = self.held(marked, &served);
        let accounts = self.accounts(&held, &served);
        let world = SecretInputs {
            owner: &self.owner,
            secret_name: &self.secret_name,
            service_accounts: &self.service_accounts,
            served: &served,
            held: &held,
            accounts: &accounts,
            source: source.as_deref(),
            at_hand: at_hand.as_ref().map(|issued| issued.mark.digest.as_str()),
            requested: must_renew,
            now,
        };
        let decision = decide(&world);

        let (have, spent) = world.tokens();
        let mut outcome = Secrets {
            have,
            spent,
            taken: taken.into_iter().map(|(namespace, owner)| (namespace, Some(owner))).collect(),
            not_allowed,
            ..Secrets::default()
        };
        if refused {
            let (own, name) = (&self.owner.namespace, &self.pull_secret.spec.registry_ref.name);
            let message = format!(
                "namespace {own} may not use Registry {name}: none of its allowedNamespaces selects the namespace's labels"
            );
            outcome.why_not =
                Some(registry_exists(ReadyState::Stalled(Cause::new(Reason::NotAllowed, message))));
        }
        let undetached = self.clear(decision.detach, decision.delete, &mut outcome).await?;
        let write = decision.write.into_iter().filter(|due| world.is_due(due, &undetached));
        let due = self.settle_places(&world, write.collect(), &mut outcome).await?;
        let mut unwritten: BTreeSet<String> =
            due.iter().map(|due| due.secret.namespace.clone()).collect();
        if registry.is_none() {
            outcome.why_not = Some(self.registry_missing());
        }
        if !due.is_empty() {
            let issued = match &at_hand {
                Some(issued) => Ok(issued.clone()),
                None => {
                    self.issue(
                        (registry.as_deref(), registry_client.as_deref(), host.as_deref()),
                        requested,
                        now,
                    )
                    .await
                }
            };
            match issued {
                Ok(issued) => {
                    let due = due
                        .into_iter()
                        .map(|due| (world.marks(&due.secret.namespace, &undetached), due));
                    for namespace in self.write(due.collect(), &issued, &mut outcome).await? {
                        unwritten.remove(&namespace);
                    }
                }
                Err((findings, retry)) => {
                    outcome.why_not.get_or_insert(findings);
                    outcome.retry = retry;
                }
            }
        }
        // An entry in a service account that no Secret records would stay forever.
        let said = |entry: &Entry| !unwritten.contains(&entry.namespace) || world.records(entry);
        let attach = decision.attach.into_iter();
        let attach =
            attach.filter(|entry| outcome.have.contains_key(&entry.namespace) && said(entry));
        for (entry, done) in self.in_accounts(attach.collect(), true).await {
            outcome.note(&entry.namespace, done)?;
        }
        Ok(outcome)
    }

    /// Decides which namespaces it may serve.
    fn claims(&self, marked: &[HeldSecret]) -> Claims {
        let stores = &self.ctx.stores;
        let pull_secrets = stores.pull_secrets.state();
        let registries: HashMap<String, Arc<Registry>> =
            stores.registries.state().into_iter().map(|it| (it.name_any(), it)).collect();
        let namespaces: Namespaces = stores
            .namespaces
            .state()
            .iter()
            .map(|it| {
                let labels = it.metadata.labels.clone().unwrap_or_default();
                (
                    it.name_any(),
                    Namespace { labels, going: it.metadata.deletion_timestamp.is_some() },
                )
            })
            .collect();
        let registry = |name: &str| registries.get(name).map(|it| &**it);
        claims(self.pull_secret, pull_secrets.iter().map(|it| &**it), registry, &namespaces, marked)
    }

    /// Returns the marked Secrets that this PullSecret owns, or that have its Secret's name in a
    /// namespace that it serves.
    fn held(&self, marked: Vec<HeldSecret>, served: &BTreeSet<String>) -> Vec<HeldSecret> {
        let concerns = |held: &HeldSecret| {
            let OwnedSecret { name: SecretName { namespace, name }, owner, .. } = &held.secret;
            owner.as_ref() == Some(&self.owner)
                || *name == self.secret_name && served.contains(namespace)
        };
        marked.into_iter().filter(concerns).collect()
    }

    /// Returns the entries of the relevant service accounts.
    fn accounts(
        &self,
        held: &[HeldSecret],
        served: &BTreeSet<String>,
    ) -> BTreeMap<(String, String), Vec<String>> {
        let wanted = served
            .iter()
            .flat_map(|namespace| self.service_accounts.iter().map(move |it| (namespace, it)));
        let patched = held.iter().flat_map(|it| {
            it.service_accounts.iter().map(move |account| (&it.secret.name.namespace, account))
        });
        let names = |(namespace, account): (&String, &String)| {
            let found =
                self.ctx.stores.service_accounts.get(&ObjectRef::new(account).within(namespace))?;
            let names = found.image_pull_secrets.iter().map(|entry| entry.name.clone()).collect();
            Some(((namespace.clone(), account.clone()), names))
        };
        wanted.chain(patched).filter_map(names).collect()
    }

    /// Removes entries from service accounts, then deletes Secrets. Returns the entries that could
    /// not be removed.
    async fn clear(
        &self,
        detach: Vec<Entry>,
        delete: Vec<SecretDeletion>,
        outcome: &mut Secrets,
    ) -> Result<Vec<Entry>, Error> {
        let mut undetached = Vec::new();
        for (entry, done) in self.in_accounts(detach, false).await {
            if !outcome.note(&entry.namespace, done)? {
                undetached.push(entry);
            }
        }
        // A Secret records which accounts name it, so it is deleted last.
        let names_it = |it: &SecretDeletion| {
            let SecretName { namespace, name } = &it.secret;
            undetached.iter().any(|entry| entry.namespace == *namespace && entry.secret == *name)
        };
        let free: Vec<SecretDeletion> = delete.into_iter().filter(|it| !names_it(it)).collect();
        let deleted: Vec<_> = stream::iter(free)
            .map(
                |deletion| async move { (self.secrets().delete(&deletion).await, deletion.secret) },
            )
            .buffer_unordered(CONCURRENT_REQUESTS)
            .collect()
            .await;
        let mut gone = BTreeSet::new();
        for (done, secret) in deleted {
            if outcome.note(&secret.namespace, done)? {
                gone.insert(secret.to_string());
            }
        }
        self.emit_event(Reason::Deleted, "deleted", &gone).await;
        Ok(undetached)
    }

    fn secrets(&self) -> SecretWriter<'_> {
        SecretWriter { client: &self.ctx.client, class: &CLASS, owner: &self.owner }
    }

    async fn in_accounts(
        &self,
        entries: Vec<Entry>,
        named: bool,
    ) -> Vec<(Entry, Result<bool, kube::Error>)> {
        stream::iter(entries)
            .map(|entry| async move {
                let done = service_accounts::set_named(&self.ctx.client, &entry, named).await;
                (entry, done)
            })
            .buffer_unordered(CONCURRENT_REQUESTS)
            .collect()
            .await
    }

    /// Checks the names of new Secrets, and leaves out those that another party has.
    async fn settle_places(
        &self,
        world: &SecretInputs<'_>,
        write: Vec<SecretWrite>,
        outcome: &mut Secrets,
    ) -> Result<Vec<SecretWrite>, Error> {
        let checked: Vec<_> = stream::iter(write)
            .map(|due| async move {
                let place = match &due.uid {
                    Some(_) => Ok(SecretPlace::Free),
                    None => self.secrets().place(&due.secret).await,
                };
                (due, place)
            })
            .buffered(CONCURRENT_REQUESTS)
            .collect()
            .await;
        let mut due = Vec::with_capacity(checked.len());
        for (one, place) in checked {
            match place {
                Ok(SecretPlace::Free) => due.push(one),
                Ok(SecretPlace::Owned(found)) => {
                    let held = HeldSecret::read(&found);
                    let reason = held
                        .as_ref()
                        .map_or(Some(WriteReason::Edited), |it| world.write_reason(it));
                    match (reason, held.map(|it| it.secret)) {
                        (None, Some(OwnedSecret { mark: Some(token), .. })) => {
                            outcome.has(one.secret.namespace, token);
                        }
                        (reason, held) => due.push(SecretWrite {
                            uid: held.map(|it| it.uid),
                            reason: reason.unwrap_or(WriteReason::Edited),
                            ..one
                        }),
                    }
                }
                Ok(SecretPlace::Leaving) => outcome.unsettled = true,
                Ok(SecretPlace::Foreign) => {
                    outcome.taken.insert(one.secret.namespace, None);
                }
                Err(error) => {
                    outcome.note(&one.secret.namespace, Err(error))?;
                }
            }
        }
        Ok(due)
    }

    /// Gets a new token, for this host if it is known. Otherwise returns the conditions and when to
    /// try again.
    async fn issue(
        &self,
        (registry, registry_client, host): (
            Option<&Registry>,
            Option<&RegistryClient>,
            Option<&str>,
        ),
        requested: Option<String>,
        now: Timestamp,
    ) -> Result<Issued, (ConditionSet, Option<Duration>)> {
        let name = &self.pull_secret.spec.registry_ref.name;
        let Some(registry) = registry else { return Err((self.registry_missing(), None)) };
        let Some(registry_client) = registry_client else {
            return Err((registry_not_ready(registry), None));
        };
        match registry_client.ask(authorization_token(registry_client.ecr())).await {
            Ok(token) => {
                if let Some(why) = not_yet(&token, host, name) {
                    return Err((
                        registry_exists(ReadyState::Reconciling(why)),
                        Some(jittered(TOKEN_RETRY_INTERVAL)),
                    ));
                }
                let source = source(registry_client.ecr().identity(), host);
                let issued = Issued::new(
                    &token,
                    &self.owner,
                    source,
                    registry_client.fingerprint(),
                    requested,
                    now,
                );
                self.tokens.put(self.owner.clone(), issued.clone());
                Ok(issued)
            }
            Err(error) => {
                let (state, retry) =
                    failed(&error, name, self.pull_secret.conditions(), REQUEUE_WAITING);
                let retry = matches!(state, ReadyState::Reconciling(_)).then_some(retry);
                Err((registry_exists(state), retry))
            }
        }
    }

    fn registry_missing(&self) -> ConditionSet {
        registry_missing(&self.pull_secret.spec.registry_ref.name)
    }

    /// Writes Secrets, each with the service accounts that it records. Returns the namespaces in
    /// which that succeeded.
    async fn write(
        &self,
        due: Vec<(BTreeSet<String>, SecretWrite)>,
        issued: &Issued,
        outcome: &mut Secrets,
    ) -> Result<BTreeSet<String>, Error> {
        let written: Vec<_> = stream::iter(due)
            .map(|(accounts, due)| async move {
                let content = [(SECRET_KEY, &issued.content)];
                let done = self
                    .secrets()
                    .write(&due, &content, &issued.mark, annotations(&accounts))
                    .await;
                (due, done)
            })
            .buffer_unordered(CONCURRENT_REQUESTS)
            .collect()
            .await;
        let (mut created, mut corrected, mut renewed) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut done_in = BTreeSet::new();
        for (SecretWrite { secret: SecretName { namespace, .. }, reason, .. }, done) in written {
            if !outcome.note(&namespace, done)? {
                continue;
            }
            outcome.has(namespace.clone(), issued.mark.clone());
            done_in.insert(namespace.clone());
            match reason {
                WriteReason::Missing => created.insert(namespace),
                WriteReason::Edited => corrected.insert(namespace),
                WriteReason::SourceChanged
                | WriteReason::Renewal
                | WriteReason::Requested
                | WriteReason::Superseded => renewed.insert(namespace),
                WriteReason::Annotations => false,
            };
        }
        self.emit_event(Reason::Created, "made in", &created).await;
        self.emit_event(Reason::Renewed, "given a new token in", &renewed).await;
        if !corrected.is_empty() {
            let registry = &self.pull_secret.spec.registry_ref.name;
            Drift { ctx: self.ctx, kind: PullSecret::NAME, registry }
                .corrected(LastSync::InSync, corrected.len());
            let note = format!(
                "drift of Secret {} was corrected in {}",
                self.secret_name,
                some(&corrected)
            );
            self.ctx.events.warning(self.pull_secret, Reason::DriftCorrected, note).await;
        }
        Ok(done_in)
    }

    async fn emit_event(&self, reason: Reason, done: &str, places: &BTreeSet<String>) {
        if !places.is_empty() {
            let note = format!("Secret {} was {done} {}", self.secret_name, some(places));
            self.ctx.events.normal(self.pull_secret, reason, note).await;
        }
    }

    /// Makes the result for the status.
    fn outcome(&self, secrets: Secrets) -> Outcome<PullSecretStatus> {
        let findings = secrets.findings(&self.secret_name, self.pull_secret.registry_name());
        let next = secrets.next(&findings.state, Timestamp::now());
        let secret_name = self.secret_name.clone();
        Outcome::new(findings, next).with_status(move |status: &mut PullSecretStatus| {
            status.secret_name = Some(secret_name);
            status.namespaces = Some(i64::try_from(secrets.have.len()).unwrap_or(i64::MAX));
            status.expires_at = secrets.ends().map(Time);
            status.renews_at = secrets.first(|it| it.renews_at).map(Time);
        })
    }

    /// Deletes all its Secrets, whatever has become of its Registry.
    async fn delete_all(&self) -> Result<(), Interrupted> {
        // Listed now: a Secret that its watch has not reported yet is deleted, too.
        let held: Vec<_> =
            self.secrets().list().await?.iter().filter_map(HeldSecret::read).collect();
        let entries = |it: &HeldSecret| {
            let SecretName { namespace, name } = it.secret.name.clone();
            let entry = |account: &String| Entry {
                namespace: namespace.clone(),
                account: account.clone(),
                secret: name.clone(),
            };
            it.service_accounts.iter().map(entry).collect::<Vec<_>>()
        };
        let detach = held.iter().flat_map(entries).collect();
        let delete = held.iter().map(|it| SecretDeletion::from(&it.secret)).collect();
        let mut outcome = Secrets::default();
        self.clear(detach, delete, &mut outcome).await?;
        if let Some(cause) = outcome.refusal() {
            let conditions = ConditionSet::of(ReadyState::Stalled(cause));
            return Err(Interrupted::Conditions(Box::new(conditions), jittered(REQUEUE_WAITING)));
        }
        if outcome.unsettled {
            return Err(Interrupted::Requeue(REQUEUE_CONFLICT));
        }
        self.tokens.remove(&self.owner);
        Ok(())
    }
}

/// Returns the conditions of a PullSecret whose Registry exists.
fn registry_exists(state: ReadyState) -> ConditionSet {
    ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) }
}
