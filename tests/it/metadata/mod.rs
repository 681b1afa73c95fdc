//! The metadata contract: one suite that every database passes, with a module per trait.
//!
//! A database's own module contains `contract!(open);`, where `open` returns a [`Fixture`] with an
//! empty store, or `None` if that database is not available.

mod events;
mod image_deletion;
mod images;
mod jobs;
mod layers;
mod manifests;
mod plans;
mod previews;
mod registries;
mod repositories;
mod sqlite;
mod storage_class;
mod upgrade;
mod uploads;
mod usage;

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::{Timestamp, ToSpan};
use uuid::Uuid;
use wharfage::names::{AccountId, Algorithm, Digest, Reference, RepositoryName, Tag};
use wharfage::store::images::{LifecycleDecision, Referrers, TaggedImage};
use wharfage::store::jobs::NewJob;
use wharfage::store::layers::Layer;
use wharfage::store::manifests::{
    BlobReference, ChildReference, Manifest, NewManifest, PutManifest,
};
use wharfage::store::repositories::{
    Encryption, NewRepository, Repository, RepositoryId, TagMutability,
};
use wharfage::store::uploads::{
    AdvanceUpload, CommitOutcome, CommitUpload, KnownBlob, Upload, UploadError, UploadProgress,
};
use wharfage::store::{BlobKey, Generation, Lookup, Metadata, Sealed, StoreResult, WriterState};

/// The lease of a job or claim.
pub const MINUTE: Duration = Duration::from_secs(60);

/// Opens the store of a fixture, with the same data each time.
pub type Open = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Metadata>> + Send + Sync>;

/// A store under test.
pub struct Fixture {
    store: Option<Arc<dyn Metadata>>,
    open: Open,
    /// Keeps the data: a temporary folder, or a database that is dropped at the end.
    _keep: Box<dyn Any + Send + Sync>,
}

impl Deref for Fixture {
    type Target = dyn Metadata;
    fn deref(&self) -> &Self::Target {
        self.store.as_deref().expect("the store is open")
    }
}

impl Fixture {
    pub async fn new(open: Open, keep: impl Any + Send + Sync) -> Self {
        plans::record();
        Self { store: Some(open().await), open, _keep: Box::new(keep) }
    }

    /// Returns the store, to share it between tasks.
    pub fn handle(&self) -> Arc<dyn Metadata> {
        Arc::clone(self.store.as_ref().expect("the store is open"))
    }

    /// Closes the store and opens it again, as a restart does.
    pub async fn reopen(&mut self) {
        self.store = None;
        self.store = Some((self.open)().await);
    }

    pub async fn repository_named(&self, name: &str) -> Repository {
        self.create_repository(new_repository(name), 1000).await.unwrap()
    }

    /// Uploads `content` as a blob.
    pub async fn blob(&self, repository: &Repository, content: &str) -> Digest {
        let digest = digest(content);
        self.commit(repository, &digest, at(0)).await;
        digest
    }

    /// Uploads a blob of 100 bytes that claims to have the digest `digest`, with a lease.
    pub async fn commit(
        &self,
        repository: &Repository,
        digest: &Digest,
        lease_until: Timestamp,
    ) -> CommitOutcome {
        let upload = new_upload(repository);
        assert!(self.create_upload(upload.clone(), None).await.unwrap());
        self.commit_intact(CommitUpload { lease_until, ..commit(&upload, digest) }).await.unwrap()
    }

    /// Commits an upload, and reports an existing blob as intact.
    pub async fn commit_intact(&self, commit: CommitUpload) -> Result<CommitOutcome, UploadError> {
        commit_intact(self.handle(), commit).await
    }

    /// Returns the bytes of a repository's blob, and true if they are damaged.
    pub async fn bytes_of(&self, repository: &Repository, digest: &Digest) -> (BlobKey, bool) {
        match self.find_blob(&repository.account, &repository.name, digest).await.unwrap() {
            Lookup::Found(blob) => (blob.bytes, blob.damaged),
            other => panic!("{digest} in {}: {other:?}", repository.name),
        }
    }

    /// Puts a manifest without blobs.
    pub async fn image(&self, repository: &Repository, payload: &str, tags: &[&str]) -> Digest {
        let put = put(repository, manifest(payload), tags);
        let digest = put.manifest.digest.clone();
        self.put_manifest(put).await.unwrap();
        digest
    }

    /// Puts an index of `children`.
    pub async fn index(
        &self,
        repository: &Repository,
        children: &[&Digest],
        tags: &[&str],
    ) -> Digest {
        self.index_of(repository, "an index", children, tags).await
    }

    /// Puts an index of `children` whose payload is `payload`.
    pub async fn index_of(
        &self,
        repository: &Repository,
        payload: &str,
        children: &[&Digest],
        tags: &[&str],
    ) -> Digest {
        let children = self.references_to(repository, children).await;
        let put = put(repository, NewManifest { children, ..manifest(payload) }, tags);
        let digest = put.manifest.digest.clone();
        self.put_manifest(put).await.unwrap();
        digest
    }

    /// Returns an index's references to these manifests, with size 0 for one that does not exist.
    pub async fn references_to(
        &self,
        repository: &Repository,
        children: &[&Digest],
    ) -> Vec<ChildReference> {
        let mut references = Vec::new();
        for digest in children {
            let found = self.image_of(repository, digest).await;
            let size = found.map_or(0, |found| found.image.payload_size);
            references.push(ChildReference { digest: (*digest).clone(), size });
        }
        references
    }

    /// Finds an image by its digest.
    pub async fn image_of(&self, repository: &Repository, digest: &Digest) -> Option<TaggedImage> {
        self.find_images(repository.id, &[Reference::Digest(digest.clone())])
            .await
            .unwrap()
            .remove(0)
    }

    /// Returns a decision of the policy `policy` about an image in its current state.
    pub async fn decision(
        &self,
        repository: &Repository,
        digest: &Digest,
        policy: &str,
    ) -> LifecycleDecision {
        let image = self.image_of(repository, digest).await.unwrap().image;
        LifecycleDecision {
            policy: policy.into(),
            revision: image.revision,
            last_pulled_at: image.last_pulled_at,
            follows_subject: false,
            kept: [].into(),
        }
    }

    /// Finds the manifest of a reference.
    pub async fn found(&self, repository: &Repository, reference: &str) -> Lookup<Manifest> {
        self.find_manifest(&repository.account, &repository.name, &reference_to(reference))
            .await
            .unwrap()
    }

    /// Returns the digest that a tag points at.
    pub async fn tagged(&self, repository: &Repository, tag: &str) -> Option<Digest> {
        match self.found(repository, tag).await {
            Lookup::Found(manifest) => Some(manifest.digest),
            Lookup::Missing => None,
            Lookup::NoRepository => panic!("the repository {} is gone", repository.name),
        }
    }

    pub async fn has_blob(&self, repository: &Repository, digest: &Digest) -> bool {
        let found = self.find_blob(&repository.account, &repository.name, digest).await.unwrap();
        matches!(found, Lookup::Found(_))
    }

    /// Finds one layer.
    pub async fn layer(
        &self,
        repository: RepositoryId,
        digest: &Digest,
    ) -> StoreResult<Option<Layer>> {
        Ok(self.find_layers(repository, std::slice::from_ref(digest)).await?.remove(0))
    }

    /// Extends one blob's lease.
    pub async fn extend_lease(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        until: Timestamp,
    ) -> StoreResult<()> {
        self.extend_leases(repository, std::slice::from_ref(digest), until).await
    }

    /// Counts the waiting jobs of a kind.
    pub async fn waiting(&self, kind: &str) -> u64 {
        let counts = self.count_jobs(&[kind]).await.unwrap();
        counts
            .iter()
            .filter(|count| count.kind == kind && count.state == "waiting")
            .map(|count| count.count)
            .sum()
    }

    /// Returns kind, action and tag of each event, oldest first.
    pub async fn recorded(&self) -> Vec<(String, String, Option<String>)> {
        let mut events = self.list_events(&account(), 1000).await.unwrap();
        events.reverse();
        let short = |event: &wharfage::store::events::Event| {
            let detail: serde_json::Value = serde_json::from_str(&event.detail).unwrap();
            let text = |name: &str| detail[name].as_str().map(str::to_owned);
            (event.kind.clone(), text("action-type").unwrap_or_default(), text("image-tag"))
        };
        events.iter().map(short).collect()
    }
}

pub fn account() -> AccountId {
    "123456789012".parse().unwrap()
}

pub fn other_account() -> AccountId {
    "210987654321".parse().unwrap()
}

pub fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

pub fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

pub fn tags(texts: &[&str]) -> Vec<Tag> {
    texts.iter().map(|text| tag(text)).collect()
}

pub fn digest(content: &str) -> Digest {
    Digest::sha256(content.as_bytes())
}

pub fn reference_to(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Returns a fixed time plus `seconds`.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_780_000_000).unwrap() + seconds.seconds()
}

pub fn new_repository(text: &str) -> NewRepository {
    NewRepository {
        account: account(),
        name: name(text),
        created_at: at(0),
        tag_mutability: TagMutability::MUTABLE,
        scan_on_push: false,
        encryption: Encryption::default(),
        tags: Vec::new(),
    }
}

/// Commits an upload, and reports an existing blob as intact.
pub async fn commit_intact(
    store: Arc<dyn Metadata>,
    mut commit: CommitUpload,
) -> Result<CommitOutcome, UploadError> {
    loop {
        match store.commit_upload(commit.clone()).await {
            Err(UploadError::Unchecked(BlobKey { generation, .. })) => {
                commit.known = Some(KnownBlob { generation, intact: true });
            }
            outcome => return outcome,
        }
    }
}

pub fn new_upload(repository: &Repository) -> Upload {
    Upload {
        id: Uuid::new_v4(),
        repository: repository.id,
        generation: Generation::random(),
        key: None,
        algorithm: Algorithm::Sha256,
        started_at: at(0),
        announced: true,
        version: 0,
        claimed_until: None,
        progress: progress(0),
    }
}

pub fn progress(offset: u64) -> UploadProgress {
    UploadProgress {
        offset,
        hash_state: vec![1, 2, 3],
        writer: WriterState(vec![4, 5]),
        protocol_state: vec![6],
        updated_at: at(offset as i64),
    }
}

/// Builds the progress of an upload with the claim `version`, which it keeps.
pub fn advance(id: Uuid, version: i64, offset: u64) -> AdvanceUpload {
    let (progress, generation) = (progress(offset), Generation::random());
    AdvanceUpload { id, version, progress, generation, hold: Some(MINUTE), now: at(0) }
}

/// Builds the commit of an unclaimed upload, with 100 bytes at its generation.
pub fn commit(upload: &Upload, digest: &Digest) -> CommitUpload {
    CommitUpload {
        id: upload.id,
        version: upload.version,
        digest: digest.clone(),
        size: 100,
        sealed: sealed(upload.generation),
        known: None,
        now: at(0),
        lease_until: at(0),
    }
}

pub fn sealed(generation: Generation) -> Sealed {
    Sealed { generation, stored_size: 100, leftover: Vec::new(), recovered: false }
}

pub fn manifest(payload: &str) -> NewManifest {
    NewManifest {
        digest: digest(payload),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        artifact_type: None,
        config_media_type: None,
        subject: None,
        annotations: BTreeMap::new(),
        blobs: Vec::new(),
        children: Vec::new(),
    }
}

pub fn blobs(digests: &[&Digest]) -> Vec<BlobReference> {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let reference = |digest: &&Digest| BlobReference {
        digest: (*digest).clone(),
        media_type: media_type.into(),
        size: 100,
    };
    digests.iter().map(reference).collect()
}

pub fn put(repository: &Repository, manifest: NewManifest, names: &[&str]) -> PutManifest {
    PutManifest {
        repository: repository.id,
        manifest,
        tags: tags(names),
        now: at(0),
        max_images: 1000,
        max_tags: 1000,
        jobs: Vec::new(),
    }
}

pub fn job(kind: &str, key: &str, payload: &str, run_at: Timestamp) -> NewJob {
    NewJob { kind: kind.into(), key: key.into(), payload: payload.into(), run_at }
}

/// Runs every case on the stores that `$open` makes.
macro_rules! contract {
    ($open:ident) => {
        contract!(@subject $open, registries:
            a_new_database_is_ready,
            account_settings_are_put_one_by_one,
            changing_a_registry_returns_the_previous_settings,
            one_of_two_concurrent_policy_deletions_finds_it,
            a_registrys_version_grows_with_every_change,
        );
        contract!(@subject $open, repositories:
            a_repository_is_found_as_it_was_created,
            a_repository_name_is_taken_once_per_registry,
            a_registry_has_no_more_repositories_than_it_may,
            repositories_are_listed_by_name_in_pages,
            each_setting_changes_alone,
            a_repositorys_version_grows_with_every_change,
            a_new_policy_enqueues_its_job_and_clears_its_evaluation,
            the_longest_overdue_policy_is_enqueued_first,
            a_policy_whose_job_waits_or_runs_is_not_enqueued_twice,
            deletion_or_early_evaluation_makes_no_policy_due_sooner,
            resource_tags_merge_up_to_their_limit,
            a_repository_with_images_is_deleted_by_force_only,
            deleting_a_repository_cancels_uploads_and_keeps_shared_blobs,
            a_recreated_repository_is_empty,
            a_deleted_repository_is_invisible_and_its_name_is_free,
            a_deleted_repository_is_emptied_in_batches,
            a_repository_that_is_not_deleted_is_not_emptied,
            deleting_a_repository_allows_another_one,
        );
        contract!(@subject $open, usage:
            usage_follows_pushes_and_deletions,
            folding_changes_no_usage,
        );
        contract!(@subject $open, layers:
            a_lookup_distinguishes_missing_blobs_and_repositories,
            a_layer_has_a_media_type_if_a_manifest_references_it,
            layers_are_found_in_the_order_given,
            a_layer_is_archived_when_every_image_with_it_is,
            a_layer_of_archived_images_is_missing_until_pushed_again,
            a_layer_of_archived_images_is_not_mounted,
            a_mount_shares_the_bytes,
            a_mount_can_ask_for_a_committed_manifest,
            blob_sources_are_the_repositories_of_the_registry_with_it,
            a_mount_needs_the_same_encryption_and_registry,
            a_blob_that_a_manifest_needs_cannot_be_unlinked,
            extending_a_lease_needs_no_blob,
            a_blob_is_reported_as_damaged_until_it_is_intact,
            a_damaged_blob_is_neither_mounted_nor_used_by_a_manifest,
        );
        contract!(@subject $open, uploads:
            an_upload_is_read_back_as_it_was_stored,
            a_session_is_claimed_once_at_a_time,
            a_claim_requires_the_version_that_was_read,
            a_claim_after_a_stale_read_is_refused,
            a_clean_end_of_a_claim_keeps_the_generation,
            an_expired_claim_is_taken_over_with_a_new_generation,
            a_lost_claim_neither_advances_nor_renews_nor_commits,
            an_expired_claim_holds_until_it_is_taken_over,
            an_acknowledged_chunk_survives_a_restart,
            a_commit_makes_a_blob_and_ends_the_session,
            a_commit_records_how_the_bytes_are_stored,
            a_commit_of_a_stale_version_changes_nothing,
            bytes_of_an_existing_blob_are_shared_and_the_copy_deleted,
            an_existing_blob_is_linked_only_after_a_check,
            a_damaged_blob_gets_the_new_bytes_in_all_repositories,
            intermediate_objects_are_deleted_after_the_commit,
            bytes_are_not_shared_across_registries_or_keys,
            the_same_digest_committed_at_once_makes_one_blob,
            canceling_hands_the_generation_to_a_job,
            the_bytes_of_a_claim_are_deleted_only_after_its_end,
            a_holder_cancels_its_own_claim_only,
            stale_uploads_are_canceled_oldest_first_up_to_the_limit,
            an_unannounced_session_is_canceled_when_its_claim_expires,
            claims_by_a_clock_that_is_ahead_are_not_canceled,
        );
        contract!(@subject $open, manifests:
            a_manifest_is_found_by_digest_and_by_tag,
            a_manifest_survives_a_restart,
            missing_blobs_and_children_are_named_and_nothing_is_written,
            image_size_is_the_sum_of_blobs_or_the_largest_child,
            pushing_again_keeps_the_push_time_and_reports_changes,
            a_push_that_changes_nothing_writes_neither_event_nor_job,
            a_push_with_another_media_type_changes_the_images_type,
            a_stated_size_that_differs_from_the_stored_is_refused,
            jobs_are_written_with_the_manifest_or_not_at_all,
            a_push_moves_a_tag,
            an_immutable_tag_is_set_once,
            an_excluded_tag_follows_its_own_rule,
            a_repository_has_no_more_images_than_it_may,
            an_image_has_no_more_tags_than_it_may,
            a_push_into_a_deleted_repository_is_refused,
            concurrent_pushes_of_one_tag_leave_one_image_tagged,
        );
        contract!(@subject $open, images:
            tags_are_listed_in_byte_order_in_pages,
            tags_of_archived_images_are_not_listed,
            a_tag_is_listed_while_its_image_is_active,
            tags_that_the_oci_api_cannot_name_are_not_listed,
            images_are_found_by_reference_in_the_order_given,
            images_are_listed_in_pages_with_their_tags,
            images_are_filtered_by_tag_and_by_status,
            pages_of_image_ids_may_split_an_image,
            image_ids_are_filtered_by_tag_and_by_status,
            index_edges_are_listed_in_pages,
            referrers_are_listed_in_pages_and_filtered,
            listings_show_one_repository_only,
            an_image_counts_as_tagged_while_a_tag_points_at_it,
            a_page_of_ids_ends_within_an_images_many_tags,
            a_recorded_pull_time_never_decreases,
        );
        contract!(@subject $open, image_deletion:
            deleting_an_image_deletes_its_tags_and_frees_its_blobs,
            an_image_held_by_an_index_is_not_deleted,
            a_refusal_names_at_most_a_hundred_indexes,
            a_decision_about_a_changed_image_is_stale,
            a_decision_is_stale_if_a_kept_image_changed,
            a_decision_about_a_referrer_is_stale_if_its_subject_exists,
            a_decision_of_a_replaced_policy_is_stale,
            deleting_the_last_tag_keeps_or_deletes_the_image,
            a_tag_is_deleted_only_from_the_expected_digest,
            a_batch_deletes_like_single_deletions_in_sequence,
            the_last_tag_of_a_held_image_is_kept_with_it,
            the_job_for_referrers_is_written_with_its_cause,
            a_referrer_follows_the_current_state_of_its_subject,
        );
        contract!(@subject $open, storage_class:
            pushing_an_archived_image_restores_it,
            an_index_restores_its_children_at_any_depth,
            an_image_moves_between_storage_classes,
            an_image_held_by_an_active_index_is_not_archived,
        );
        contract!(@subject $open, previews:
            one_preview_runs_at_a_time,
            a_previews_results_are_paged,
            a_killed_run_leaves_no_results,
            the_end_of_another_preview_is_ignored,
            a_new_preview_drops_the_last_results,
            a_deleted_repository_has_no_preview,
        );
        contract!(@subject $open, jobs:
            the_longest_overdue_job_is_claimed_first,
            a_job_is_not_claimed_before_its_time_nor_for_another_kind,
            waiting_jobs_of_one_key_coalesce,
            a_job_waits_behind_a_running_one_of_its_key,
            no_job_is_claimed_twice_at_once,
            a_job_with_an_expired_lease_is_claimed_again,
            a_lease_ends_by_the_databases_clock,
            a_heartbeat_keeps_the_job_until_the_claim_is_lost,
            a_long_queue_does_not_hide_other_kinds,
            a_failed_job_is_retried_at_its_time,
            a_failed_job_coalesces_with_the_waiting_one,
            a_dead_job_is_kept_and_not_claimed,
            the_last_dead_job_is_kept_until_its_key_is_done,
            jobs_are_listed_by_kind_and_state_in_pages,
            dead_jobs_are_requeued_by_id_by_kind_or_all,
            requeuing_merges_dead_jobs_and_makes_late_ones_due,
            jobs_survive_a_restart,
        );
        contract!(@subject $open, events:
            old_events_are_pruned_by_age_and_by_number,
            events_are_listed_newest_first_per_registry,
            pushes_and_deletions_are_recorded,
        );
    };
    (@subject $open:ident, $subject:ident: $($case:ident),* $(,)?) => {
        mod $subject {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    if let Some(fixture) = super::$open().await {
                        super::super::$subject::$case(fixture).await;
                        super::super::plans::check().await;
                    }
                }
            )*
        }
    };
}
use contract;

mod postgres;
