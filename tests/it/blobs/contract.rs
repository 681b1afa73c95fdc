//! The contract of every backend. Each function is one test, run by `on!`.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use wharfage::store::{
    BlobKey, Generation, Handover, Inspect, KeyReference, StoreError, UploadKey, WriterState,
};

use super::{
    BackendFixture, begin, checkpoint, content, finish, get, get_whole, inconsistent, key, put,
    resume, same, write,
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Sizes around the boundaries of chunks, batches and parts.
const SIZES: [usize; 17] = [
    0,
    1,
    4 * KIB - 1,
    4 * KIB,
    64 * KIB + 1,
    256 * KIB - 1,
    256 * KIB,
    256 * KIB + 1,
    MIB - 1,
    MIB,
    MIB + 1,
    6 * MIB - 1,
    6 * MIB,
    6 * MIB + 1,
    12 * MIB - 1,
    12 * MIB,
    12 * MIB + 1,
];

pub async fn written_bytes_read_back_at_every_size(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    for size in SIZES {
        let bytes = content(size as u64, size);
        let blob = put(blobs.as_ref(), &bytes).await;
        same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &bytes);
    }
}

pub async fn frames_of_any_size_make_the_same_blob(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let bytes = content(1, 7 * MIB + 3);
    for frame in [8, 1000, 4096, 8 * KIB, 400 * KIB, 3 * MIB, 8 * MIB] {
        // Tiny frames take many calls, so fewer bytes are enough.
        let bytes = if frame < KIB { bytes.slice(..50_001) } else { bytes.clone() };
        let mut writer = begin(blobs.as_ref()).await;
        write(writer.as_mut(), &bytes, frame).await;
        writer.write(Bytes::new()).await.unwrap();
        let blob = finish(writer).await;
        same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &bytes);
    }
}

pub async fn a_range_reads_exactly_its_bytes(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let size = 7 * MIB + 123;
    let bytes = content(2, size);
    let blob = put(blobs.as_ref(), &bytes).await;
    let ranges = [
        0..1,
        0..size,
        1..2,
        size - 1..size,
        size - 300 * KIB..size,
        256 * KIB - 1..256 * KIB + 1,
        6 * MIB - 1..6 * MIB + 1,
        MIB..MIB + 256 * KIB,
        12_345..6_789_012,
    ];
    for range in ranges {
        let read = get(blobs.as_ref(), &blob, range.start as u64..range.end as u64).await.unwrap();
        same(&read, &bytes[range]);
    }
}

pub async fn an_upload_continues_at_its_checkpoint_after_a_restart(fixture: &dyn BackendFixture) {
    let size = 13 * MIB + 7;
    let bytes = content(3, size);
    for handover in [Handover::Clean, Handover::Takeover] {
        for stops in [
            vec![1],
            vec![MIB, MIB + 1, 5 * MIB],
            vec![6 * MIB],
            vec![6 * MIB + 1, 12 * MIB - 1, 12 * MIB],
            vec![size],
        ] {
            let (mut offset, mut state) = (0, WriterState::default());
            for stop in stops {
                let blobs = fixture.open().await;
                let mut writer = resume(blobs.as_ref(), offset, &state, handover).await.unwrap();
                write(writer.as_mut(), &bytes.slice(offset..stop), 300 * KIB).await;
                state = checkpoint(writer.as_mut()).await;
                offset = stop;
            }
            let blobs = fixture.open().await;
            let mut writer = resume(blobs.as_ref(), offset, &state, handover).await.unwrap();
            write(writer.as_mut(), &bytes.slice(offset..), 300 * KIB).await;
            let blob = finish(writer).await;
            same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &bytes);
        }
    }
}

pub async fn a_checkpoint_without_new_bytes_changes_nothing(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    for size in [0, 10, 6 * MIB, 7 * MIB] {
        let bytes = content(4, size);
        let mut writer = begin(blobs.as_ref()).await;
        write(writer.as_mut(), &bytes, MIB).await;
        let state = checkpoint(writer.as_mut()).await;
        assert_eq!(checkpoint(writer.as_mut()).await, state);
        drop(writer);
        let mut writer = resume(blobs.as_ref(), size, &state, Handover::Clean).await.unwrap();
        assert_eq!(checkpoint(writer.as_mut()).await, state);
        let blob = finish(writer).await;
        same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &bytes);
    }
}

pub async fn bytes_after_the_checkpoint_are_overwritten(fixture: &dyn BackendFixture) {
    for (kept, lost, rest) in
        [(0, 7 * MIB, 10), (10, 2 * MIB, MIB), (7 * MIB, 14 * MIB, 0), (7 * MIB, MIB, 13 * MIB)]
    {
        let (kept, lost, rest) = (content(5, kept), content(6, lost), content(7, rest));
        let blobs = fixture.open().await;
        let mut writer = begin(blobs.as_ref()).await;
        write(writer.as_mut(), &kept, 100 * KIB).await;
        let state = checkpoint(writer.as_mut()).await;
        write(writer.as_mut(), &lost, 100 * KIB).await;
        drop(writer);

        let mut writer =
            resume(blobs.as_ref(), kept.len(), &state, Handover::Takeover).await.unwrap();
        write(writer.as_mut(), &rest, 100 * KIB).await;
        let blob = finish(writer).await;
        same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &[kept, rest].concat());
    }
}

pub async fn finishing_an_uncommitted_upload_again_succeeds(fixture: &dyn BackendFixture) {
    for (before, after) in [
        (0, 0),
        (0, 10),
        (10, 0),
        (10, 10),
        (7 * MIB, 0),
        (7 * MIB, 10),
        (0, 7 * MIB),
        (MIB, 13 * MIB),
    ] {
        let (before, after) = (content(8, before), content(9, after));
        let whole = [before.clone(), after.clone()].concat();
        let mut state = WriterState::default();
        if !before.is_empty() {
            let mut writer = begin(fixture.open().await.as_ref()).await;
            write(writer.as_mut(), &before, 100 * KIB).await;
            state = checkpoint(writer.as_mut()).await;
        }
        for _ in 0..2 {
            let blobs = fixture.open().await;
            let mut writer =
                resume(blobs.as_ref(), before.len(), &state, Handover::Takeover).await.unwrap();
            write(writer.as_mut(), &after, 100 * KIB).await;
            let blob = finish(writer).await;
            same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &whole);
        }
    }
}

pub async fn finishing_again_with_other_bytes_leaves_only_those(fixture: &dyn BackendFixture) {
    let before = content(10, 7 * MIB);
    // As many bytes, fewer, none, and enough to fill a part before the end.
    for (first, then) in [(MIB, MIB), (2 * MIB, MIB), (MIB, 0), (0, 1), (8 * MIB, 6 * MIB)] {
        let (first, then) = (content(11, first), content(12, then));
        let blobs = fixture.open().await;
        let mut writer = begin(blobs.as_ref()).await;
        write(writer.as_mut(), &before, 100 * KIB).await;
        let state = checkpoint(writer.as_mut()).await;
        write(writer.as_mut(), &first, 100 * KIB).await;
        finish(writer).await;

        let mut writer =
            resume(blobs.as_ref(), before.len(), &state, Handover::Takeover).await.unwrap();
        write(writer.as_mut(), &then, 100 * KIB).await;
        let blob = finish(writer).await;
        let whole = [before.clone(), then].concat();
        same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &whole);
    }
}

/// Sizes of the acknowledged bytes, of those that the writer without a claim adds, and of those
/// that the takeover adds.
const LATE: [(usize, usize, usize); 6] = [
    (0, 10, 10),
    (10, 10, 10),
    (7 * MIB, 10, 10),
    (7 * MIB, 0, 10),
    (7 * MIB, 6 * MIB, 6 * MIB),
    (0, 7 * MIB, 7 * MIB),
];

pub async fn a_late_writer_changes_no_finished_object(fixture: &dyn BackendFixture) {
    for (before, late, new) in LATE {
        let (before, late, new) = (content(30, before), content(31, late), content(32, new));
        let blobs = fixture.open().await;
        let mut writer = begin(blobs.as_ref()).await;
        write(writer.as_mut(), &before, 100 * KIB).await;
        let state = checkpoint(writer.as_mut()).await;
        drop(writer);
        // Both continue at the same checkpoint; the second has taken over the claim.
        let mut loser =
            resume(blobs.as_ref(), before.len(), &state, Handover::Clean).await.unwrap();
        write(loser.as_mut(), &late.slice(..late.len() / 2), 100 * KIB).await;
        let mut winner =
            resume(blobs.as_ref(), before.len(), &state, Handover::Takeover).await.unwrap();
        write(winner.as_mut(), &new, 100 * KIB).await;
        let blob = finish(winner).await;

        let rest = late.slice(late.len() / 2..);
        for frame in rest.chunks(100 * KIB) {
            if loser.write(Bytes::copy_from_slice(frame)).await.is_err() {
                break;
            }
        }
        // It may finish or not: without its digest its object does not become the session's.
        let _ = loser.finish().await;
        same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &[before, new].concat());
    }
}

pub async fn a_takeover_finishes_with_its_own_bytes(fixture: &dyn BackendFixture) {
    for (before, late, new) in LATE {
        let (before, late, new) = (content(33, before), content(34, late), content(35, new));
        let blobs = fixture.open().await;
        let mut writer = begin(blobs.as_ref()).await;
        write(writer.as_mut(), &before, 100 * KIB).await;
        let state = checkpoint(writer.as_mut()).await;
        drop(writer);
        let mut loser =
            resume(blobs.as_ref(), before.len(), &state, Handover::Clean).await.unwrap();
        write(loser.as_mut(), &late, 100 * KIB).await;
        finish(loser).await;

        let mut winner =
            resume(blobs.as_ref(), before.len(), &state, Handover::Takeover).await.unwrap();
        write(winner.as_mut(), &new, 100 * KIB).await;
        let sealed = winner.finish().await.unwrap();
        let read = get_whole(blobs.as_ref(), &key(&sealed)).await.unwrap();
        if read != [before, new].concat() {
            assert!(sealed.recovered, "bytes of another writer are told");
        }
    }
}

pub async fn a_complete_checkpoint_is_sealed_without_a_writer(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    assert_eq!(blobs.sealed(0, &WriterState::default()).await.unwrap(), None);
    for stops in [vec![10], vec![10, 20], vec![6 * MIB - 1], vec![7 * MIB]] {
        let (mut offset, mut state) = (0, WriterState::default());
        for stop in stops {
            let mut writer = resume(blobs.as_ref(), offset, &state, Handover::Clean).await.unwrap();
            write(writer.as_mut(), &content(36, stop).slice(offset..), 100 * KIB).await;
            state = checkpoint(writer.as_mut()).await;
            offset = stop;
        }
        assert_eq!(blobs.sealed(offset as u64 + 1, &state).await.unwrap(), None);
        let sealed = blobs.sealed(offset as u64, &state).await.unwrap();
        if let Some(sealed) = &sealed {
            assert_eq!((sealed.stored_size, sealed.recovered), (offset as u64, false));
            same(&get_whole(blobs.as_ref(), &key(sealed)).await.unwrap(), &content(36, offset));
        }
        assert!(sealed.is_some() || offset > 6 * MIB, "{offset} bytes in one object are sealed");
    }
}

pub async fn only_the_blob_is_left_at_the_end(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    for handover in [Handover::Clean, Handover::Takeover] {
        for stops in [
            vec![10],
            vec![10, 20],
            vec![10, 20, 30],
            vec![5 * MIB, 7 * MIB, 8 * MIB],
            vec![7 * MIB, 12 * MIB, 13 * MIB],
        ] {
            let (mut offset, mut state) = (0, WriterState::default());
            let mut fresh = Generation::random();
            let mut sealed = None;
            let last = stops.len() - 1;
            for (n, stop) in stops.into_iter().enumerate() {
                let key = UploadKey::plain(fresh);
                let mut writer = blobs
                    .writer(&key, offset as u64, &state, handover, Arc::new(()))
                    .await
                    .unwrap();
                write(writer.as_mut(), &content(37, stop).slice(offset..), 100 * KIB).await;
                offset = stop;
                if n == last {
                    sealed = Some(writer.finish().await.unwrap());
                    continue;
                }
                fresh = Generation::random();
                state = writer.checkpoint(fresh).await.unwrap();
            }
            let sealed = sealed.unwrap();
            for leftover in &sealed.leftover {
                blobs.delete(*leftover, &WriterState::default(), &[]).await.unwrap();
            }
            assert_eq!(fixture.objects().await, [sealed.generation.path()]);
            same(&get_whole(blobs.as_ref(), &key(&sealed)).await.unwrap(), &content(37, offset));
            blobs.delete(sealed.generation, &WriterState::default(), &[]).await.unwrap();
        }
    }
}

pub async fn a_blob_of_another_size_is_never_served(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let generation = put(blobs.as_ref(), &content(13, 1000)).await.generation;
    for (size, range) in [
        (999, 0..999),
        (1001, 0..1001),
        (1001, 0..1),
        (2000, 1500..2000),
        (999, 998..999),
        (0, 0..0),
    ] {
        inconsistent(blobs.read(&BlobKey::plain(generation, size), range).await.map(|_| ()));
    }
}

pub async fn a_missing_blob_is_inconsistent(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    inconsistent(blobs.read(&BlobKey::plain(Generation::random(), 10), 0..10).await.map(|_| ()));
}

pub async fn a_stored_size_is_that_of_the_object(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    for size in [0, 10, 7 * MIB] {
        let blob = put(blobs.as_ref(), &content(38, size)).await;
        assert_eq!(blobs.stored_size(blob.generation).await.unwrap(), Some(size as u64));
    }
    assert_eq!(blobs.stored_size(Generation::random()).await.unwrap(), None);
}

pub async fn encrypted_blobs_are_neither_read_nor_written(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let sealed = Some(KeyReference { id: "a key".into(), wrapped: vec![1, 2, 3] });
    let blob = BlobKey { key: sealed.clone(), ..put(blobs.as_ref(), &content(39, 10)).await };
    assert!(matches!(blobs.read(&blob, 0..10).await.map(|_| ()), Err(StoreError::Backend(_))));
    let upload = UploadKey { generation: Generation::random(), key: sealed };
    let writer =
        blobs.writer(&upload, 0, &WriterState::default(), Handover::Clean, Arc::new(())).await;
    assert!(matches!(writer.map(|_| ()), Err(StoreError::Backend(_))));
}

pub async fn a_writer_requires_the_acknowledged_bytes(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    inconsistent(
        resume(blobs.as_ref(), 10, &WriterState::default(), Handover::Clean).await.map(|_| ()),
    );

    let mut writer = begin(blobs.as_ref()).await;
    write(writer.as_mut(), &content(14, 10), 10).await;
    let state = checkpoint(writer.as_mut()).await;
    drop(writer);
    for handover in [Handover::Clean, Handover::Takeover] {
        inconsistent(resume(blobs.as_ref(), 11, &state, handover).await.map(|_| ()));
    }
}

pub async fn deleting_is_idempotent(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let state = WriterState::default();
    blobs.delete(Generation::random(), &state, &[]).await.unwrap();
    let other = put(blobs.as_ref(), &content(15, 10)).await;
    for size in [0, 10, 7 * MIB] {
        let blob = put(blobs.as_ref(), &content(16, size)).await;
        blobs.delete(blob.generation, &state, &[]).await.unwrap();
        inconsistent(blobs.read(&blob, 0..size as u64).await.map(|_| ()));
        blobs.delete(blob.generation, &state, &[]).await.unwrap();
    }
    same(&get_whole(blobs.as_ref(), &other).await.unwrap(), &content(15, 10));
}

pub async fn an_unfinished_blob_is_deleted_with_its_leftovers(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    for size in [0, 10, 6 * MIB, 14 * MIB] {
        let (first, next) = (Generation::random(), Generation::random());
        let key = UploadKey::plain(first);
        let mut writer = blobs
            .writer(&key, 0, &WriterState::default(), Handover::Clean, Arc::new(()))
            .await
            .unwrap();
        write(writer.as_mut(), &content(17, size), 100 * KIB).await;
        let state = writer.checkpoint(next).await.unwrap();
        write(writer.as_mut(), &content(17, 10), 10).await;
        writer.abandon().await;
        for _ in 0..2 {
            blobs.delete(next, &state, &[]).await.unwrap();
            assert_eq!(fixture.objects().await, [""; 0]);
        }
    }
}

/// Collects the inspected bytes.
#[derive(Default)]
struct Recorder(Mutex<Vec<u8>>);

impl Inspect for Recorder {
    fn inspect(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

pub async fn every_byte_is_inspected_once_and_in_order(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let (checkpointed, whole) = (6 * MIB + 300, 14 * MIB);
    let bytes = content(40, whole);
    for frame in [1000, 31 * KIB, 100 * KIB, 700 * KIB] {
        let (fresh, next) =
            (UploadKey::plain(Generation::random()), UploadKey::plain(Generation::random()));
        let seen = Arc::new(Recorder::default());
        let state = WriterState::default();
        let mut writer =
            blobs.writer(&fresh, 0, &state, Handover::Clean, seen.clone()).await.unwrap();
        writer.inspected().await.unwrap();
        let mut written = 0;
        // Bytes that were inspected in the middle of a batch are not inspected again with its rest.
        for stop in [10, 10 + 40 * KIB, 3 * MIB + 7, 3 * MIB + 7, 5 * MIB] {
            write(writer.as_mut(), &bytes.slice(written..stop), frame).await;
            written = stop;
            writer.inspected().await.unwrap();
            same(&seen.0.lock().unwrap().clone().into(), &bytes[..written]);
        }
        write(writer.as_mut(), &bytes.slice(written..checkpointed), frame).await;
        let state = writer.checkpoint(next.generation).await.unwrap();
        same(&seen.0.lock().unwrap().clone().into(), &bytes[..checkpointed]);
        drop(writer);

        // The next writer inspects only the new bytes.
        let seen = Arc::new(Recorder::default());
        let mut writer = blobs
            .writer(&next, checkpointed as u64, &state, Handover::Clean, seen.clone())
            .await
            .unwrap();
        write(writer.as_mut(), &bytes.slice(checkpointed..), frame).await;
        writer.inspected().await.unwrap();
        same(&seen.0.lock().unwrap().clone().into(), &bytes[checkpointed..]);
        let blob = finish(writer).await;
        same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &bytes);
        same(&seen.0.lock().unwrap().clone().into(), &bytes[checkpointed..]);
    }
}

pub async fn generations_are_written_concurrently(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    join_all((0..24).map(|n| {
        let blobs = blobs.clone();
        async move {
            let bytes = content(100 + n, MIB + 300_000 * n as usize);
            let blob = put(blobs.as_ref(), &bytes).await;
            same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &bytes);
        }
    }))
    .await;
}

pub async fn a_blob_is_read_concurrently(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let bytes = content(18, 3 * MIB + 1);
    let blob = put(blobs.as_ref(), &bytes).await;
    // All streams are open before any is read, and then they alternate.
    let streams = join_all((0..10).map(|n| blobs.read(&blob, n * 1000..bytes.len() as u64))).await;
    let read =
        join_all(streams.into_iter().map(|stream| stream.unwrap().try_collect::<Vec<_>>())).await;
    for (n, chunks) in read.into_iter().enumerate() {
        same(&chunks.unwrap().concat().into(), &bytes[n * 1000..]);
    }
}

pub async fn a_reader_may_stop_half_way(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let bytes = content(19, 3 * MIB);
    let blob = put(blobs.as_ref(), &bytes).await;
    let mut stream = blobs.read(&blob, 0..bytes.len() as u64).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    drop(stream);
    // A chunk does not change while others read.
    same(&get_whole(blobs.as_ref(), &blob).await.unwrap(), &bytes);
    same(&first, &bytes[..first.len()]);
}

pub async fn the_writer_state_is_bounded(fixture: &dyn BackendFixture) {
    let blobs = fixture.open().await;
    let mut writer = begin(blobs.as_ref()).await;
    let bytes = content(20, 5 * MIB);
    let mut state = WriterState::default();
    for _ in 0..5 {
        write(writer.as_mut(), &bytes, 400 * KIB).await;
        state = checkpoint(writer.as_mut()).await;
        assert!(
            state.0.len() < KIB,
            "no bytes of the blob are in {} bytes of state",
            state.0.len()
        );
    }
    writer.abandon().await;
    blobs.delete(Generation::random(), &state, &[]).await.unwrap();
    assert_eq!(fixture.objects().await, [""; 0]);
}

pub async fn an_open_store_is_ready(fixture: &dyn BackendFixture) {
    fixture.open().await.ready().await.unwrap();
}
