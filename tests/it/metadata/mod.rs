//! The metadata contract: one suite that every database passes, in one module per subject.
//!
//! A database's own module says `contract!(open);`, where `open` makes a [`Fixture`] around an empty store, or `None` where
//! that database is not there to be tested.

mod blobs;
mod jobs;
mod listings;
mod manifests;
mod plans;
mod previews;
mod registries;
mod repositories;
mod sqlite;
mod uploads;

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
use wharfage::store::images::{
    BlobReference, ChildReference, Layer, LifecycleDecision, Manifest, NewManifest, PutManifest, Referrers, TaggedImage,
};
use wharfage::store::jobs::NewJob;
use wharfage::store::repositories::{Encryption, NewRepository, Repository, RepositoryId, TagMutability};
use wharfage::store::uploads::{
    AdvanceUpload, CommitUpload, Committed, KnownBlob, Upload, UploadError, UploadProgress,
};
use wharfage::store::{BlobKey, Generation, Lookup, Metadata, Sealed, StoreResult, WriterState};

/// A lease for a job.
pub const MINUTE: Duration = Duration::from_secs(60);

/// Opens the store of a fixture: the same data each time.
pub type Open = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Metadata>> + Send + Sync>;

/// A store under test.
pub struct Fixture {
    store: Option<Arc<dyn Metadata>>,
    open: Open,
    /// What has to live as long as the data: a temporary folder, a database that is dropped at the end.
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

    /// The store, to be shared by tasks.
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

    /// Uploads a blob of 100 bytes whose digest is said to be `digest`, with a lease.
    pub async fn commit(&self, repository: &Repository, digest: &Digest, lease_until: Timestamp) -> Committed {
        let upload = new_upload(repository);
        assert!(self.create_upload(upload.clone(), None).await.unwrap());
        self.commit_intact(CommitUpload { lease_until, ..commit(&upload, digest) }).await.unwrap()
    }

    /// Commits an upload, with the word that the blob which is there already is intact.
    pub async fn commit_intact(&self, commit: CommitUpload) -> Result<Committed, UploadError> {
        commit_intact(self.handle(), commit).await
    }

    /// The bytes of a repository's blob, and whether they are damaged.
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
    pub async fn index(&self, repository: &Repository, children: &[&Digest], tags: &[&str]) -> Digest {
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

    /// What an index says of these manifests; of one that is not there, that it is empty.
    pub async fn references_to(&self, repository: &Repository, children: &[&Digest]) -> Vec<ChildReference> {
        let mut references = Vec::new();
        for digest in children {
            let found = self.image_of(repository, digest).await;
            let size = found.map_or(0, |found| found.image.payload_size);
            references.push(ChildReference { digest: (*digest).clone(), size });
        }
        references
    }

    /// The image of a digest.
    pub async fn image_of(&self, repository: &Repository, digest: &Digest) -> Option<TaggedImage> {
        self.images(repository.id, &[Reference::Digest(digest.clone())]).await.unwrap().remove(0)
    }

    /// What the repository's policy `policy` decides by about an image as it is now.
    pub async fn decision(&self, repository: &Repository, digest: &Digest, policy: &str) -> LifecycleDecision {
        let image = self.image_of(repository, digest).await.unwrap().image;
        LifecycleDecision {
            policy: policy.into(),
            revision: image.revision,
            last_pulled_at: image.last_pulled_at,
            follows_subject: false,
            kept: [].into(),
        }
    }

    /// Where a reference leads.
    pub async fn found(&self, repository: &Repository, reference: &str) -> Lookup<Manifest> {
        self.find_manifest(&repository.account, &repository.name, &reference_to(reference)).await.unwrap()
    }

    /// The digest that a tag points at.
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

    /// What is known of one layer.
    pub async fn layer(&self, repository: RepositoryId, digest: &Digest) -> StoreResult<Option<Layer>> {
        Ok(self.layers(repository, std::slice::from_ref(digest)).await?.remove(0))
    }

    /// Moves one blob's lease.
    pub async fn extend_lease(&self, repository: RepositoryId, digest: &Digest, until: Timestamp) -> StoreResult<()> {
        self.extend_leases(repository, std::slice::from_ref(digest), until).await
    }

    /// How many jobs of a kind wait.
    pub async fn waiting(&self, kind: &str) -> u64 {
        let counts = self.job_counts(&[kind]).await.unwrap();
        counts.iter().filter(|count| count.kind == kind && count.state == "waiting").map(|count| count.count).sum()
    }

    /// The events' kinds, actions and tags, oldest first.
    pub async fn told(&self) -> Vec<(String, String, Option<String>)> {
        let mut events = self.events(&account(), 1000).await.unwrap();
        events.reverse();
        let short = |event: &wharfage::store::jobs::Event| {
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

/// Some moment, and `seconds` later.
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

/// Commits an upload, with the word that the blob which is there already is intact.
pub async fn commit_intact(store: Arc<dyn Metadata>, mut commit: CommitUpload) -> Result<Committed, UploadError> {
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
        door: vec![6],
        updated_at: at(offset as i64),
    }
}

/// What a chunk makes of an upload that was claimed as `version`; it keeps the claim.
pub fn advance(id: Uuid, version: i64, offset: u64) -> AdvanceUpload {
    let (progress, generation) = (progress(offset), Generation::random());
    AdvanceUpload { id, version, progress, generation, hold: Some(MINUTE), now: at(0) }
}

/// Commits an upload that nobody claims, of 100 bytes at its generation.
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
    let reference =
        |digest: &&Digest| BlobReference { digest: (*digest).clone(), media_type: media_type.into(), size: 100 };
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
            a_database_that_was_just_opened_is_ready,
            account_settings_are_put_one_by_one,
            a_registrys_settings_change_one_by_one_and_tell_what_they_were,
            a_registry_policy_that_is_deleted_at_once_was_there_for_one,
            a_registrys_version_grows_with_every_change,
        );
        contract!(@subject $open, repositories:
            a_repository_is_found_as_it_was_created,
            a_repository_name_is_taken_once_per_registry,
            a_registry_has_no_more_repositories_than_it_may,
            repositories_are_listed_by_name_in_pages,
            each_setting_changes_alone,
            a_repositorys_version_grows_with_every_change,
            a_new_lifecycle_policy_enqueues_its_job_and_forgets_the_last_evaluation,
            the_policy_that_is_overdue_longest_is_enqueued_first,
            a_policy_whose_job_waits_or_runs_is_not_enqueued_twice,
            a_policy_that_is_deleted_or_evaluated_early_is_due_no_sooner,
            resource_tags_merge_up_to_their_limit,
            a_repository_with_images_is_deleted_by_force_only,
            deleting_a_repository_hands_its_uploads_to_jobs_and_keeps_shared_blobs,
            what_belonged_to_a_deleted_repository_does_not_come_back_with_its_name,
            usage_follows_what_is_pushed_and_deleted,
            a_deleted_repository_is_gone_at_once_and_its_name_is_free,
            a_deleted_repository_is_emptied_in_batches,
            a_repository_that_is_not_deleted_is_not_emptied,
            a_place_in_a_registry_is_free_when_a_repository_is_deleted,
            folding_changes_no_usage,
        );
        contract!(@subject $open, blobs:
            a_look_up_tells_a_missing_blob_from_a_missing_repository,
            a_layer_knows_its_media_type_and_who_references_it,
            layers_are_asked_for_together_in_the_order_given,
            a_layer_is_archived_when_every_image_with_it_is,
            a_layer_of_archived_images_is_not_found_until_it_is_pushed_again,
            a_layer_of_archived_images_is_not_mounted,
            a_mount_shares_the_bytes,
            a_mount_can_ask_for_a_committed_manifest,
            a_blobs_sources_are_the_repositories_of_its_registry_that_have_it,
            a_mount_needs_the_same_encryption_and_registry,
            a_blob_that_a_manifest_needs_cannot_be_unlinked,
            extending_a_lease_needs_no_blob,
            a_damaged_blob_is_told_until_it_is_not,
            a_damaged_blob_is_neither_mounted_nor_used_by_a_manifest,
        );
        contract!(@subject $open, uploads:
            an_upload_is_read_back_as_it_was_stored,
            a_session_is_claimed_once_at_a_time,
            a_claim_is_of_the_version_that_was_read,
            who_read_a_session_before_bytes_were_acknowledged_does_not_claim_it,
            a_claim_that_ended_cleanly_hands_its_generation_on,
            a_claim_that_ran_out_is_taken_over_with_a_generation_of_its_own,
            what_lost_its_claim_neither_advances_nor_prolongs_nor_commits,
            a_claim_that_ran_out_holds_until_it_is_taken_over,
            an_acknowledged_chunk_survives_a_restart,
            a_commit_makes_a_blob_and_ends_the_session,
            a_commit_names_how_the_bytes_are_stored,
            a_commit_of_a_stale_version_changes_nothing,
            bytes_that_the_registry_has_are_shared_and_the_copy_is_deleted,
            a_blob_that_is_there_is_linked_only_after_a_look_at_it,
            a_blob_that_is_damaged_gets_the_new_bytes_for_all_repositories,
            what_was_written_on_the_way_is_deleted_after_the_commit,
            bytes_are_not_shared_across_registries_or_keys,
            the_same_digest_committed_at_once_makes_one_blob,
            cancelling_hands_the_generation_to_a_job,
            what_a_claim_may_still_write_is_deleted_only_after_its_end,
            a_holder_cancels_its_own_claim_only,
            stale_uploads_are_cancelled_oldest_first_and_no_more_than_asked,
            a_session_that_no_client_knows_goes_when_its_claim_ran_out,
            a_reaper_leaves_what_is_claimed_by_a_clock_that_is_ahead,
        );
        contract!(@subject $open, manifests:
            a_manifest_is_found_by_digest_and_by_tag,
            a_manifest_survives_a_restart,
            missing_blobs_and_children_are_named_and_nothing_is_written,
            sizes_are_the_sum_of_the_blobs_and_of_an_index_the_largest_child,
            pushing_again_keeps_the_push_time_and_tells_what_changed,
            a_push_that_changes_nothing_writes_neither_event_nor_job,
            a_push_under_another_media_type_gives_the_image_that_type,
            a_size_that_contradicts_what_is_stored_is_refused,
            jobs_are_written_with_the_manifest_or_not_at_all,
            a_push_moves_a_tag,
            an_immutable_tag_is_set_once,
            an_excluded_tag_follows_its_own_rule,
            a_repository_has_no_more_images_than_it_may,
            an_image_has_no_more_tags_than_it_may,
            a_push_into_a_repository_that_is_gone_is_refused,
            pushing_an_archived_image_restores_it,
            an_index_restores_what_it_holds_at_any_depth,
            one_tag_pushed_at_once_points_at_one_of_the_images,
            deleting_an_image_takes_its_tags_and_frees_its_blobs,
            an_image_that_an_index_holds_is_not_deleted,
            a_refusal_names_no_more_indexes_than_a_hundred,
            an_image_that_changed_since_the_decision_is_not_acted_on,
            an_image_that_is_too_many_stays_where_those_beside_it_changed,
            a_referrer_is_not_acted_on_while_its_subject_is_there,
            a_lifecycle_policy_that_is_no_longer_the_repositorys_acts_on_nothing,
            a_deleted_tag_leaves_the_image_or_takes_it_along,
            a_tag_is_deleted_only_where_it_is_expected,
            a_batch_deletes_as_one_deletion_after_the_other_would,
            the_last_tag_of_a_held_image_is_kept_with_it,
            an_image_moves_between_storage_classes,
            an_image_that_an_active_index_holds_is_not_archived,
            a_recorded_pull_never_goes_back,
            pushes_and_deletions_are_told,
            the_job_for_the_referrers_is_written_with_its_cause_or_not_at_all,
            a_referrer_becomes_what_its_subject_is_at_that_moment,
        );
        contract!(@subject $open, listings:
            tags_come_in_byte_order_and_in_pages,
            tags_of_archived_images_are_not_listed,
            a_tag_is_listed_while_the_image_that_it_points_at_is_active,
            tags_that_the_oci_api_cannot_name_are_not_listed,
            images_are_asked_for_by_reference_in_the_order_given,
            images_come_in_pages_with_their_tags,
            images_are_filtered_by_tag_and_by_status,
            image_ids_come_in_pages_that_split_an_image,
            image_ids_are_filtered_by_tag_and_by_status,
            index_edges_come_in_pages,
            referrers_come_in_pages_and_are_filtered,
            listings_keep_to_their_repository,
            an_image_counts_as_tagged_while_a_tag_points_at_it,
            a_page_of_ids_ends_within_an_images_many_tags,
        );
        contract!(@subject $open, previews:
            one_preview_runs_at_a_time,
            a_previews_results_are_paged,
            a_run_that_was_killed_leaves_no_results,
            the_end_of_another_preview_is_ignored,
            a_new_preview_forgets_the_last_ones_results,
            a_repository_that_is_gone_has_no_preview,
        );
        contract!(@subject $open, jobs:
            the_job_that_is_due_longest_comes_first,
            a_job_is_not_claimed_before_its_time_nor_for_another_kind,
            waiting_jobs_of_one_key_coalesce,
            a_job_enqueued_while_its_like_runs_waits_behind_it,
            no_job_is_claimed_twice_at_once,
            a_lease_that_ran_out_lets_another_claim_the_job,
            a_lease_ends_by_the_databases_clock,
            a_heartbeat_keeps_the_job_until_the_claim_is_lost,
            a_long_queue_of_one_kind_hides_no_other,
            a_failed_job_is_tried_again_when_it_says,
            a_failed_job_joins_the_one_that_waits_behind_it,
            a_dead_job_is_kept_and_not_claimed,
            the_latest_failure_of_a_key_is_kept_until_its_like_is_done,
            jobs_are_listed_by_kind_and_state_in_pages,
            dead_jobs_are_requeued_by_id_by_kind_or_all,
            a_dead_job_gives_way_to_one_that_waits_and_a_late_one_comes_sooner,
            jobs_survive_a_restart,
            events_come_newest_first_and_per_registry,
            old_events_are_pruned_by_age_and_by_number,
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
