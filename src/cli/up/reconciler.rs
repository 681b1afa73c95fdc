//! Keeps registries as a folder of manifests declares them, while its files change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;

use super::super::identity::Planner;
use super::super::output::{say, say_error};
use super::super::reconcile::{Output, Target, execute, show_notes, show_unresolved};
use super::managed;
use super::watch::Watch;
use crate::apply::{Previewed, StepOutcome, Verdict};
use crate::crd::Managed as _;
use crate::crd::common::DEFAULT_INTERVAL;
use crate::manifests::{Loader, Manifests};
use crate::plan::model::Refused;
use crate::plan::{Action, Desired, Object, ObjectKey, Plan, RepositoryCall, Step, unresolved};

/// The first delay after a failure in a registry; it doubles each time, up to the interval.
const RETRY: Duration = Duration::from_secs(15);
/// Previews are evaluated again after this many times as long as it took before: a tenth of the time is for them.
const REST_PER_PREVIEW: u32 = 9;

/// The folder and the rules by which it is read.
pub(super) struct Folder {
    path: PathBuf,
    loader: Arc<Loader>,
}

impl Folder {
    pub(super) fn new(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_owned(), loader: Arc::new(Loader::new()?) })
    }

    /// Reads the manifests.
    ///
    /// # Errors
    /// When one is not valid, or no Registry is among them: a folder that is empty for a moment asks for nothing.
    pub(super) async fn load(&self) -> anyhow::Result<Manifests> {
        let (path, loader) = (self.path.clone(), Arc::clone(&self.loader));
        let manifests = tokio::task::spawn_blocking(move || loader.load(&path)).await??;
        ensure!(
            !manifests.registries.is_empty(),
            "{} declares no Registry: add one, or name another folder",
            self.path.display()
        );
        Ok(manifests)
    }
}

/// The reason for a reconcile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// The first time: everything is reported.
    Start,
    /// Files changed: it is reported that they were read.
    Edit,
    /// Time has passed: only news are reported.
    Interval,
}

/// The rule by which orphans, which no manifest declares any more, are released or deleted.
pub(super) struct Pruning {
    /// The time without a change to the files before pruning; nothing is pruned without it.
    pub(super) after: Option<Duration>,
    /// The command that does it after a confirmation.
    pub(super) command: String,
}

impl Pruning {
    /// Returns the time until the orphans of a registry are pruned: zero for now, nothing for never
    /// in the current state. `resting` is how long the files have not changed; none while they
    /// cannot be read.
    fn due_in(
        &self,
        desired: &Desired,
        orphans: &[Step],
        resting: Option<Duration>,
    ) -> Option<Duration> {
        let declares_nothing =
            desired.repositories.is_empty() && desired.lifecycle_policies.is_empty();
        if orphans.is_empty() || declares_nothing {
            return None;
        }
        Some(self.after?.saturating_sub(resting?))
    }
}

/// Keeps registries as the manifests declare them.
pub(super) struct Reconciler {
    targets: Vec<Target>,
    planner: Planner,
    pruning: Pruning,
    pub(super) manifests: Manifests,
    /// Since when the files have been as they are.
    resting_since: Instant,
    /// The files could not be read, as was said; nothing is pruned meanwhile.
    unreadable: Option<String>,
    /// The resources that were refused when last reported, so that they aren't reported again and
    /// again.
    shown: Vec<String>,
    /// Orphans when they were last reported, by registry.
    orphans: HashMap<String, BTreeSet<String>>,
    /// Results of previews when they were last reported.
    previews: BTreeMap<(String, ObjectKey, Object), Previewed>,
    /// When previews are evaluated again, by registry.
    next_previews: HashMap<String, Instant>,
    /// Plans that failed when they were last reported, by registry: the same again is tried in silence.
    failing: HashMap<String, String>,
    /// The number of consecutive failures.
    failures: u32,
}

impl Reconciler {
    pub(super) fn new(
        targets: Vec<Target>,
        planner: Planner,
        pruning: Pruning,
        manifests: Manifests,
    ) -> Self {
        Self {
            targets,
            planner,
            pruning,
            manifests,
            resting_since: Instant::now(),
            unreadable: None,
            shown: Vec::new(),
            orphans: HashMap::new(),
            previews: BTreeMap::new(),
            next_previews: HashMap::new(),
            failing: HashMap::new(),
            failures: 0,
        }
    }

    /// Reconciles whenever the files change, and every interval, for which they are read, too; ends by an error only.
    pub(super) async fn follow(
        &mut self,
        folder: &Folder,
        mut files: Watch,
        wait: Duration,
    ) -> anyhow::Result<()> {
        let mut due = Instant::now() + wait;
        loop {
            tokio::select! {
                changed = files.changed() => changed?,
                () = tokio::time::sleep_until(due) => {}
            }
            // No matter what ended the wait: the current content of the files counts.
            if files.take().await? {
                self.resting_since = Instant::now();
            }
            let edited = self.read(folder).await;
            if edited || Instant::now() >= due {
                due = Instant::now()
                    + self
                        .reconcile(if edited { Occasion::Edit } else { Occasion::Interval })
                        .await;
            }
        }
    }

    /// Reads the folder again, and returns whether it says something else now. A file that cannot
    /// be read is reported once.
    async fn read(&mut self, folder: &Folder) -> bool {
        let read = match folder.load().await {
            Ok(new) => {
                folder.loader.check_update(&self.manifests, &new).map(|()| new).map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(new) => {
                let differs = new != self.manifests;
                self.unreadable = None;
                if differs {
                    for note in managed::restart_needed(&self.manifests, &new) {
                        say(format_args!("{note}"));
                    }
                    self.manifests = new;
                }
                differs
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.unreadable.as_ref() != Some(&error) {
                    say_error(format_args!("{error}\nNothing was changed. Fix this to continue."));
                }
                self.unreadable = Some(error);
                false
            }
        }
    }

    /// Plans for every registry, executes the plans and shows both. Returns when to look again.
    pub(super) async fn reconcile(&mut self, occasion: Occasion) -> Duration {
        let mut failed = false;
        let mut refusals = Vec::new();
        let mut wait = self.interval();
        for target in self.targets.clone() {
            if self.manifests.registry(&target.name).is_none() {
                continue;
            }
            let (desired, mut plan) = match target.plan(&self.manifests, &self.planner).await {
                Ok(planned) => planned,
                Err(error) => {
                    failed = true;
                    let error = format!("{error:#}");
                    if !self.shown.contains(&error) {
                        say_error(format_args!("error: {error}"));
                    }
                    refusals.push(error);
                    continue;
                }
            };
            let orphans = plan.take_orphans(&desired);
            let resting = self.unreadable.is_none().then(|| self.resting_since.elapsed());
            match self.pruning.due_in(&desired, &orphans, resting) {
                Some(Duration::ZERO) => plan.steps.extend(orphans),
                later => {
                    wait = later.map_or(wait, |later| wait.min(later));
                    self.report_orphans(&target, &orphans, later.is_some());
                }
            }
            let refused =
                plan.refused.iter().map(|it| refusal_line(&target.name, it)).collect::<Vec<_>>();
            let news = refused.iter().any(|it| !self.shown.contains(it));
            refusals.extend(refused);
            let text = plan.to_string();
            let again =
                occasion == Occasion::Interval && self.failing.get(&target.name) == Some(&text);
            if occasion != Occasion::Interval || (!plan.is_empty() && !again) || news {
                say(format_args!("{}\n{text}\n", target.heading()));
            }
            if !plan.is_empty() {
                failed |= !self.execute(&target, &plan, text, again).await;
            } else {
                self.failing.remove(&target.name);
            }
            if occasion == Occasion::Interval && !plan.reevaluations.is_empty() {
                self.reevaluate(&target, plan.reevaluations).await;
            }
        }
        let unresolved = unresolved(&self.manifests);
        let reported_already = |it: &Refused| self.shown.contains(&refusal_line("", it));
        if occasion != Occasion::Interval || !unresolved.iter().all(reported_already) {
            show_unresolved(&unresolved);
        }
        if occasion != Occasion::Interval {
            show_notes(&self.manifests.notes, Output::Text);
        }
        refusals.extend(unresolved.iter().map(|it| refusal_line("", it)));
        self.shown = refusals;
        if !failed {
            self.failures = 0;
            return wait;
        }
        let retry = RETRY.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        retry.min(wait)
    }

    /// Executes a plan and shows how it went, unless the same failed before; whether all of it is done.
    async fn execute(&mut self, target: &Target, plan: &Plan, text: String, again: bool) -> bool {
        let report = execute(target, plan, if again { None } else { Some(Output::Text) }).await;
        for outcome in &report.outcomes {
            self.remember_preview(target, outcome);
        }
        let succeeded = report.succeeded();
        if succeeded {
            self.failing.remove(&target.name);
            if again {
                report.outcomes.iter().for_each(|outcome| say(format_args!("{outcome}")));
            }
        } else {
            self.failing.insert(target.name.clone(), text);
        }
        if !again {
            say(format_args!(""));
        }
        succeeded
    }

    /// Lets the registry evaluate previews again, and reports those whose result is another than before.
    async fn reevaluate(&mut self, target: &Target, steps: Vec<Step>) {
        let begun = Instant::now();
        if self.next_previews.get(&target.name).is_some_and(|next| begun < *next) {
            return;
        }
        let report = execute(target, &Plan { steps, ..Plan::default() }, None).await;
        for outcome in report.outcomes {
            if let Verdict::Failed(error) = &outcome.verdict {
                tracing::debug!(object = %outcome.object, %error, "a preview failed; the next interval tries again");
            }
            if self.remember_preview(target, &outcome) {
                say(format_args!("{outcome}"));
            }
        }
        self.next_previews
            .insert(target.name.clone(), Instant::now() + begun.elapsed() * REST_PER_PREVIEW);
    }

    /// Keeps the result of a preview; whether it is another than before.
    fn remember_preview(&mut self, target: &Target, outcome: &StepOutcome) -> bool {
        let Some(previewed) = &outcome.preview else { return false };
        let key = (target.name.clone(), outcome.key.clone(), outcome.object.clone());
        self.previews.insert(key, previewed.clone()).as_ref() != Some(previewed)
    }

    /// Reports orphans that were not reported yet. One that is declared again is forgotten.
    fn report_orphans(&mut self, target: &Target, orphans: &[Step], pruned_later: bool) {
        let reported = self.orphans.remove(&target.name).unwrap_or_default();
        let mut now = BTreeSet::new();
        for step in orphans {
            let (orphan, fate) = orphan(step);
            let text = match self.pruning.after.filter(|_| pruned_later) {
                Some(after) => format!(
                    "{orphan}: it is {fate} once the files have rested for {} s",
                    after.as_secs()
                ),
                None => format!(
                    "{orphan}: it stays as it is. To have it {fate}: {}",
                    self.pruning.command
                ),
            };
            if !reported.contains(&text) {
                say(format_args!("{text}"));
            }
            now.insert(text);
        }
        self.orphans.insert(target.name.clone(), now);
    }

    /// The shortest interval of any resource between two checks of its registry.
    fn interval(&self) -> Duration {
        let repositories = self.manifests.repositories.iter().map(|it| it.resource.interval());
        let policies = self.manifests.lifecycle_policies.iter().map(|it| it.resource.interval());
        repositories.chain(policies).min().unwrap_or(DEFAULT_INTERVAL).max(Duration::from_secs(1))
    }
}

/// Returns what no manifest declares any more, and what a step would do to it.
fn orphan(step: &Step) -> (String, &'static str) {
    let Step { action, object, key, calls, .. } = step;
    let name = object.other_name(key).map(|name| format!(" ({name})")).unwrap_or_default();
    let fate = match action {
        Action::Delete
            if calls.contains(&RepositoryCall::DeleteRepository { force: true }.into()) =>
        {
            "deleted with its images"
        }
        Action::Delete => "deleted",
        _ => "released",
    };
    (format!("undeclared {object}{name}"), fate)
}

fn refusal_line(registry: &str, Refused { object, reason, message }: &Refused) -> String {
    format!("{registry} {object} {reason} {message}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::{Adoption, DesiredRepository, Management};
    use crate::plan::ownership::OnRemoval;

    fn pruning(after: Option<Duration>) -> Pruning {
        Pruning { after, command: "wharfage apply".to_owned() }
    }

    fn orphan() -> [Step; 1] {
        let object =
            Object { kind: "Repository", namespace: "team".to_owned(), name: "gone".to_owned() };
        let calls = vec![RepositoryCall::DeleteRepository { force: true }.into()];
        let key = ObjectKey::Repository("team/gone".parse().unwrap());
        [Step { action: Action::Delete, object, key, arn: None, changes: Vec::new(), calls }]
    }

    fn declaring_something() -> Desired {
        let object =
            Object { kind: "Repository", namespace: "team".to_owned(), name: "api".to_owned() };
        let repository = DesiredRepository {
            object,
            name: "team/api".parse().unwrap(),
            tag_mutability: None,
            scan_on_push: None,
            encryption: None,
            policy: None,
            tags: BTreeMap::new(),
            management: Management::Full,
            adoption: Adoption::AdoptOrCreate,
            on_removal: OnRemoval::Retain,
        };
        Desired { repositories: vec![repository], ..Desired::default() }
    }

    #[test]
    fn orphans_are_pruned_when_the_files_have_rested() {
        let seconds = Duration::from_secs;
        let (pruning, desired) = (pruning(Some(seconds(60))), declaring_something());
        let due_in = |resting| pruning.due_in(&desired, &orphan(), Some(seconds(resting)));
        assert_eq!([due_in(0), due_in(45)], [Some(seconds(60)), Some(seconds(15))]);
        assert_eq!([due_in(60), due_in(100)], [Some(seconds(0)); 2]);
        assert_eq!(pruning.due_in(&desired, &[], Some(seconds(100))), None);
        assert_eq!(pruning.due_in(&desired, &orphan(), None), None, "a folder that cannot be read");
        assert_eq!(
            pruning.due_in(&Desired::default(), &orphan(), Some(seconds(100))),
            None,
            "an emptied folder"
        );
    }

    #[test]
    fn nothing_is_pruned_unless_asked() {
        assert_eq!(
            pruning(None).due_in(
                &declaring_something(),
                &orphan(),
                Some(Duration::from_secs(1_000_000))
            ),
            None
        );
    }
}
