//! PullSecret: Secrets to pull with are made in the namespaces that are chosen, kept fresh, and taken away again.

mod objects;
mod outcome;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, ResourceExt as _};

use super::converge::{Drift, failed};
use super::finish::{KindObject as _, Outcome, finish, suspend};
use super::{Done, Error, KindController, Past, WAIT, jittered, registry_missing, registry_not_ready};
use crate::apply::{authorization_token, host as host_of};
use crate::crd::{PullSecret, PullSecretStatus, Reason, Registry};
use crate::operator::access::{Access, Feature, Scope, own_kind};
use crate::operator::context::Context;
use crate::operator::finalizer;
use crate::operator::pull_secrets::claims::{Claims, Namespace, Namespaces, claims};
use crate::operator::pull_secrets::decide::{Doomed, Due, Entry, Why, World, decide};
use crate::operator::pull_secrets::marks::{Held, Owner, source};
use crate::operator::pull_secrets::tokens::{Issued, Tokens, not_yet};
use crate::operator::session::{Session, Trouble};
use crate::operator::status::{Cause, Findings, Standing};
use crate::operator::workload;
use objects::Place;
use outcome::{MOMENT, Secrets, some};

pub(in crate::operator) const ACCESS: &[Access] = &{
    let [objects, status] = own_kind(&["pullsecrets"], &["pullsecrets/status"]);
    [
        objects,
        status,
        Access {
            group: "",
            resources: &["secrets"],
            verbs: &["get", "list", "watch", "create", "patch", "delete"],
            scope: Scope::Cluster,
            feature: Feature::PullSecrets,
            why: "Secrets to pull with, in the namespaces that PullSecrets choose; only those that it labelled are watched",
        },
        Access {
            group: "",
            resources: &["serviceaccounts"],
            verbs: &["get", "list", "watch", "patch"],
            scope: Scope::Cluster,
            feature: Feature::PullSecrets,
            why: "imagePullSecrets of the service accounts that PullSecrets name",
        },
    ]
};

const KIND: &str = "PullSecret";

/// How soon a registry is asked again whose Pods are being replaced.
const ROLLOUT: Duration = Duration::from_secs(10);
/// Requests to the API server that are under way at once for one PullSecret.
const AT_ONCE: usize = 8;

/// Reconciles PullSecrets.
pub(in crate::operator) struct PullSecretController {
    ctx: Arc<Context>,
    /// The tokens that go into Secrets.
    tokens: Tokens,
}

impl PullSecretController {
    pub(in crate::operator) fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, tokens: Tokens::default() }
    }
}

impl KindController for PullSecretController {
    type Object = PullSecret;
    const KIND: &'static str = KIND;
    const CONCURRENCY: u16 = 4;

    fn context(&self) -> &Context {
        &self.ctx
    }

    fn store(&self) -> Store<PullSecret> {
        self.ctx.stores.pull_secrets.clone()
    }

    async fn reconcile(self: Arc<Self>, pull_secret: Arc<PullSecret>) -> Result<Done, Error> {
        let reconcile = PullSecretReconcile {
            api: Api::namespaced(self.ctx.client.clone(), &pull_secret.namespace().unwrap_or_default()),
            owner: Owner::of(&pull_secret),
            secret_name: pull_secret.secret_name(),
            service_accounts: pull_secret.spec.service_accounts.iter().cloned().collect(),
            ctx: &self.ctx,
            tokens: &self.tokens,
            pull_secret: &pull_secret,
        };
        if !self.ctx.settings.has(Feature::PullSecrets) {
            return reconcile.disabled().await;
        }
        if pull_secret.metadata.deletion_timestamp.is_some() {
            return reconcile.cleanup().await;
        }
        if pull_secret.suspended() {
            return suspend(&self.ctx, &reconcile.api, &*pull_secret).await;
        }
        finalizer::add(&reconcile.api, &*pull_secret).await?;
        let secrets = reconcile.run().await?;
        reconcile.finish(secrets).await
    }
}

/// One reconcile of a PullSecret.
struct PullSecretReconcile<'a> {
    ctx: &'a Context,
    tokens: &'a Tokens,
    api: Api<PullSecret>,
    pull_secret: &'a PullSecret,
    owner: Owner,
    secret_name: String,
    service_accounts: BTreeSet<String>,
}

impl PullSecretReconcile<'_> {
    async fn run(&self) -> Result<Secrets, Error> {
        let now = Timestamp::now();
        let registry = self.ctx.stores.registry(&self.pull_secret.registry_ref().name);
        let session = self.ctx.sessions.get(&self.pull_secret.registry_ref().name);
        let session = session.filter(|_| registry.is_some());
        let host = registry.as_ref().and_then(|it| workload::told_url(it, &self.ctx.settings.namespace));
        let host = host.and_then(|url| host_of(&url));
        let source = session.as_ref().map(|session| source(session.ecr().identity(), host.as_deref()));

        let marked: Vec<Held> = self.ctx.stores.pulled.state().iter().filter_map(|it| Held::read(it)).collect();
        let Claims { served, taken, not_allowed, refused } = self.claims(&marked);
        let asked = self.pull_secret.requested();
        let issued = self.tokens.get(&self.owner);
        // New credentials, or a request that the token at hand doesn't answer yet.
        let anew = issued.as_ref().map_or(asked.is_some(), |issued| {
            session.as_ref().is_some_and(|it| it.fingerprint() != issued.session)
                || (asked.is_some() && asked != issued.asked)
        });
        let at_hand = issued.filter(|issued| !anew && issued.serves(source.as_deref(), now));
        let held = self.held(marked, &served);
        let accounts = self.accounts(&held, &served);
        let world = World {
            owner: &self.owner,
            secret_name: &self.secret_name,
            service_accounts: &self.service_accounts,
            served: &served,
            held: &held,
            accounts: &accounts,
            source: source.as_deref(),
            at_hand: at_hand.as_ref().map(|issued| issued.mark.digest.as_str()),
            requested: anew,
            now,
        };
        let decision = decide(&world);

        let (have, spent) = world.there();
        let mut outcome = Secrets {
            have,
            spent,
            taken: taken.into_iter().map(|(namespace, owner)| (namespace, Some(owner))).collect(),
            not_allowed,
            ..Secrets::default()
        };
        if refused {
            let (own, name) = (&self.owner.namespace, &self.pull_secret.registry_ref().name);
            let message = format!(
                "namespace {own} may not use Registry {name}: none of its allowedNamespaces selects the namespace's labels"
            );
            outcome.why_not = Some(registry_exists(Standing::Stalled(Cause::new(Reason::NotAllowed, message))));
        }
        let named_still = self.clear(decision.detach, decision.delete, &mut outcome).await?;
        let write = decision.write.into_iter().filter(|due| world.is_due(due, &named_still));
        let due = self.settle_places(&world, write.collect(), &mut outcome).await?;
        let mut unwritten: BTreeSet<String> = due.iter().map(|due| due.namespace.clone()).collect();
        if registry.is_none() {
            outcome.why_not = Some(self.registry_missing());
        }
        if !due.is_empty() {
            let issued = match &at_hand {
                Some(issued) => Ok(issued.clone()),
                None => self.issue((registry.as_deref(), session.as_deref(), host.as_deref()), asked, now).await,
            };
            match issued {
                Ok(issued) => {
                    let due = due.into_iter().map(|due| (world.marks(&due.namespace, &named_still), due));
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
        // A name that no Secret says was put there would stay for ever.
        let said = |entry: &Entry| !unwritten.contains(&entry.namespace) || world.says(entry);
        let attach = decision.attach.into_iter();
        let attach = attach.filter(|entry| outcome.have.contains_key(&entry.namespace) && said(entry));
        for (entry, done) in self.in_accounts(attach.collect(), true).await {
            outcome.note(&entry.namespace, done)?;
        }
        Ok(outcome)
    }

    /// What it wants, and may.
    fn claims(&self, marked: &[Held]) -> Claims {
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
                (it.name_any(), Namespace { labels, going: it.metadata.deletion_timestamp.is_some() })
            })
            .collect();
        let registry = |name: &str| registries.get(name).map(|it| &**it);
        claims(self.pull_secret, pull_secrets.iter().map(|it| &**it), registry, &namespaces, marked)
    }

    /// The marked Secrets that are this PullSecret's, or where its own are to be.
    fn held(&self, marked: Vec<Held>, served: &BTreeSet<String>) -> Vec<Held> {
        let concerns = |held: &Held| {
            held.owner.as_ref() == Some(&self.owner)
                || held.name == self.secret_name && served.contains(&held.namespace)
        };
        marked.into_iter().filter(concerns).collect()
    }

    /// What the service accounts that matter name.
    fn accounts(&self, held: &[Held], served: &BTreeSet<String>) -> BTreeMap<(String, String), Vec<String>> {
        let wanted = served.iter().flat_map(|namespace| self.service_accounts.iter().map(move |it| (namespace, it)));
        let patched =
            held.iter().flat_map(|it| it.service_accounts.iter().map(move |account| (&it.namespace, account)));
        let names = |(namespace, account): (&String, &String)| {
            let found = self.ctx.stores.service_accounts.get(&ObjectRef::new(account).within(namespace))?;
            let names = found.image_pull_secrets.iter().map(|entry| entry.name.clone()).collect();
            Some(((namespace.clone(), account.clone()), names))
        };
        wanted.chain(patched).filter_map(names).collect()
    }

    /// Names out of service accounts, then Secrets away. Gives the names that couldn't be taken out.
    async fn clear(&self, detach: Vec<Entry>, delete: Vec<Doomed>, outcome: &mut Secrets) -> Result<Vec<Entry>, Error> {
        let mut named_still = Vec::new();
        for (entry, done) in self.in_accounts(detach, false).await {
            if !outcome.note(&entry.namespace, done)? {
                named_still.push(entry);
            }
        }
        // A Secret says which accounts name it: it goes last.
        let names_it =
            |it: &Doomed| named_still.iter().any(|entry| entry.namespace == it.namespace && entry.secret == it.name);
        let free: Vec<Doomed> = delete.into_iter().filter(|it| !names_it(it)).collect();
        let deleted: Vec<_> = stream::iter(free)
            .map(|doomed| async move { (objects::delete(&self.ctx.client, &doomed).await, doomed) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut gone = BTreeSet::new();
        for (done, doomed) in deleted {
            if outcome.note(&doomed.namespace, done)? {
                gone.insert(format!("{}/{}", doomed.namespace, doomed.name));
            }
        }
        self.emit_event(Reason::Deleted, "deleted", &gone).await;
        Ok(named_still)
    }

    async fn in_accounts(&self, entries: Vec<Entry>, named: bool) -> Vec<(Entry, Result<bool, kube::Error>)> {
        stream::iter(entries)
            .map(|entry| async move {
                let done = objects::name_in_account(&self.ctx.client, &entry, named).await;
                (entry, done)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// Looks at the names where Secrets are to be made: those that somebody else has are left out.
    async fn settle_places(
        &self,
        world: &World<'_>,
        write: Vec<Due>,
        outcome: &mut Secrets,
    ) -> Result<Vec<Due>, Error> {
        let looked: Vec<_> = stream::iter(write)
            .map(|due| async move {
                let place = match &due.uid {
                    Some(_) => Ok(Place::Free),
                    None => objects::place(&self.ctx.client, &due.namespace, &self.secret_name, &self.owner).await,
                };
                (due, place)
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut due = Vec::with_capacity(looked.len());
        for (one, place) in looked {
            match place {
                Ok(Place::Free) => due.push(one),
                Ok(Place::Own(held)) => {
                    let why = world.due(Some(&held));
                    let Held { token, uid, .. } = *held;
                    match (why, token) {
                        (None, Some(token)) => {
                            outcome.has(one.namespace, token);
                        }
                        (why, _) => due.push(Due { uid: Some(uid), why: why.unwrap_or(Why::Edited), ..one }),
                    }
                }
                Ok(Place::Passing) => outcome.unsettled = true,
                Ok(Place::Taken) => {
                    outcome.taken.insert(one.namespace, None);
                }
                Err(error) => {
                    outcome.note(&one.namespace, Err(error))?;
                }
            }
        }
        Ok(due)
    }

    /// Gets a new token, for this host if it is known which, or says why there is none, and when to try again.
    async fn issue(
        &self,
        (registry, session, host): (Option<&Registry>, Option<&Session>, Option<&str>),
        asked: Option<String>,
        now: Timestamp,
    ) -> Result<Issued, (Findings, Option<Duration>)> {
        let name = &self.pull_secret.registry_ref().name;
        let Some(registry) = registry else { return Err((self.registry_missing(), None)) };
        let Some(session) = session else { return Err((registry_not_ready(registry), None)) };
        match session.ask(authorization_token(session.ecr())).await {
            Ok(token) => {
                if let Some(why) = not_yet(&token, host, name) {
                    return Err((registry_exists(Standing::Waiting(why)), Some(jittered(ROLLOUT))));
                }
                let source = source(session.ecr().identity(), host);
                let issued = Issued::new(&token, &self.owner, source, session.fingerprint(), asked, now);
                self.tokens.put(self.owner.clone(), issued.clone());
                Ok(issued)
            }
            Err(trouble) => {
                let (standing, retry) = failed(&trouble, name, self.pull_secret.conditions(), WAIT);
                let retry = matches!(standing, Standing::Waiting(_)).then_some(retry);
                Err((registry_exists(standing), retry))
            }
        }
    }

    fn registry_missing(&self) -> Findings {
        registry_missing(&self.pull_secret.registry_ref().name)
    }

    /// Writes Secrets, each with the service accounts that it is to say name it. Gives the namespaces in which that was done.
    async fn write(
        &self,
        due: Vec<(BTreeSet<String>, Due)>,
        issued: &Issued,
        outcome: &mut Secrets,
    ) -> Result<BTreeSet<String>, Error> {
        let written: Vec<_> = stream::iter(due)
            .map(|(accounts, due)| async move {
                let whose = (&self.owner, &accounts);
                let (namespace, uid) = (&due.namespace, due.uid.as_deref());
                let done = objects::write(&self.ctx.client, namespace, &self.secret_name, uid, issued, whose).await;
                (due, done)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let (mut created, mut repaired, mut renewed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut done_in = BTreeSet::new();
        for (Due { namespace, uid: _, why }, done) in written {
            if !outcome.note(&namespace, done)? {
                continue;
            }
            outcome.has(namespace.clone(), issued.mark.clone());
            done_in.insert(namespace.clone());
            match why {
                Why::Missing => created.insert(namespace),
                Why::Edited => repaired.insert(namespace),
                Why::SourceChanged | Why::Renewal | Why::Requested | Why::Superseded => renewed.insert(namespace),
                Why::ServiceAccounts => false,
            };
        }
        self.emit_event(Reason::Created, "made in", &created).await;
        self.emit_event(Reason::Renewed, "given a new token in", &renewed).await;
        if !repaired.is_empty() {
            let registry = &self.pull_secret.registry_ref().name;
            Drift { ctx: self.ctx, kind: KIND, registry }.corrected(Past::Settled, repaired.len());
            let note = format!("drift of Secret {} was corrected in {}", self.secret_name, some(&repaired));
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

    /// Writes the status, and says when to reconcile again.
    async fn finish(&self, secrets: Secrets) -> Result<Done, Error> {
        let findings = secrets.findings(&self.secret_name, &self.pull_secret.registry_ref().name);
        let next = secrets.next(&findings.standing, Timestamp::now());
        let secret_name = self.secret_name.clone();
        let outcome = Outcome::new(findings, next).with_status(move |status: &mut PullSecretStatus| {
            status.secret_name = Some(secret_name);
            status.namespaces = Some(i64::try_from(secrets.have.len()).unwrap_or(i64::MAX));
            status.expires_at = secrets.ends().map(Time);
            status.renews_at = secrets.first(|it| it.renews_at).map(Time);
        });
        finish(self.ctx, &self.api, self.pull_secret, outcome).await
    }

    /// This operator may not touch Secrets. One that goes isn't held up by that: what it made stays until its token ends.
    async fn disabled(&self) -> Result<Done, Error> {
        let message = "this operator goes without PullSecrets: switch them on where it was installed";
        if self.pull_secret.metadata.deletion_timestamp.is_none() {
            let because = Cause::new(Reason::PullSecretsDisabled, message);
            let why_not = Some(Findings::of(Standing::Stalled(because)));
            return self.finish(Secrets { why_not, ..Secrets::default() }).await;
        }
        if finalizer::has(self.pull_secret) {
            let note = format!("{message}; the Secrets that it made stay until somebody deletes them");
            self.ctx.events.warning(self.pull_secret, Reason::PullSecretsDisabled, note).await;
            finalizer::remove(&self.api, self.pull_secret).await?;
        }
        Ok(Done::resting())
    }

    /// The resource is being deleted, and everything it made with it, whatever has become of its Registry.
    async fn cleanup(&self) -> Result<Done, Error> {
        if !finalizer::has(self.pull_secret) {
            return Ok(Done::resting());
        }
        // Asked for now: a Secret that a watch has yet to tell of goes, too.
        let held = objects::all_of(&self.ctx.client, &self.owner).await?;
        let detach = held.iter().flat_map(|it| {
            let entry = |account: &String| Entry {
                namespace: it.namespace.clone(),
                account: account.clone(),
                secret: it.name.clone(),
            };
            it.service_accounts.iter().map(entry).collect::<Vec<_>>()
        });
        let detach = detach.collect();
        let delete =
            held.into_iter().map(|Held { namespace, name, uid, .. }| Doomed { namespace, name, uid }).collect();
        let mut outcome = Secrets::default();
        self.clear(detach, delete, &mut outcome).await?;
        if let Some(because) = outcome.refusal() {
            let outcome = Outcome::new(Findings::of(Standing::Stalled(because)), jittered(WAIT));
            return finish(self.ctx, &self.api, self.pull_secret, outcome).await;
        }
        if outcome.unsettled {
            let because = Cause::new(Reason::Deleting, "its Secrets are being taken away");
            return Ok(Done::standing(&Standing::Waiting(because), MOMENT));
        }
        finalizer::remove(&self.api, self.pull_secret).await?;
        self.tokens.remove(&self.owner);
        Ok(Done::resting())
    }
}

/// How a PullSecret stands whose Registry exists.
fn registry_exists(standing: Standing) -> Findings {
    Findings { references: Some(Ok(())), ..Findings::of(standing) }
}
