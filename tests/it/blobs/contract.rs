//! What every backend must do. Each function is one test, run by `on!`.

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use wharfage::store::{Generation, WriterState};

use super::{Place, content, get, get_whole, inconsistent, put, same, write};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Sizes at which a backend does something else: chunks, batches, parts.
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

pub async fn what_was_written_reads_back_at_every_size(place: &dyn Place) {
    let blobs = place.open().await;
    for size in SIZES {
        let bytes = content(size as u64, size);
        let generation = put(blobs.as_ref(), &bytes).await;
        same(&get_whole(blobs.as_ref(), generation, size).await.unwrap(), &bytes);
    }
}

pub async fn frames_of_any_size_make_the_same_blob(place: &dyn Place) {
    let blobs = place.open().await;
    let bytes = content(1, 7 * MIB + 3);
    for frame in [8, 1000, 4096, 8 * KIB, 400 * KIB, 3 * MIB, 8 * MIB] {
        // Tiny frames are many calls: fewer bytes say the same.
        let bytes = if frame < KIB { bytes.slice(..50_001) } else { bytes.clone() };
        let generation = Generation::random();
        let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
        write(writer.as_mut(), &bytes, frame).await;
        writer.write(Bytes::new()).await.unwrap();
        writer.finish().await.unwrap();
        same(&get_whole(blobs.as_ref(), generation, bytes.len()).await.unwrap(), &bytes);
    }
}

pub async fn a_range_reads_exactly_its_bytes(place: &dyn Place) {
    let blobs = place.open().await;
    let size = 7 * MIB + 123;
    let bytes = content(2, size);
    let generation = put(blobs.as_ref(), &bytes).await;
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
        let read = get(blobs.as_ref(), generation, size as u64, range.start as u64..range.end as u64).await.unwrap();
        same(&read, &bytes[range]);
    }
}

pub async fn an_upload_goes_on_from_its_checkpoint_after_a_restart(place: &dyn Place) {
    let size = 13 * MIB + 7;
    let bytes = content(3, size);
    for stops in
        [vec![1], vec![MIB, MIB + 1, 5 * MIB], vec![6 * MIB], vec![6 * MIB + 1, 12 * MIB - 1, 12 * MIB], vec![size]]
    {
        let generation = Generation::random();
        let (mut offset, mut state) = (0, WriterState::default());
        for stop in stops {
            let mut writer = place.open().await.writer(generation, offset as u64, &state).await.unwrap();
            write(writer.as_mut(), &bytes.slice(offset..stop), 300 * KIB).await;
            state = writer.checkpoint().await.unwrap();
            offset = stop;
        }
        let blobs = place.open().await;
        let mut writer = blobs.writer(generation, offset as u64, &state).await.unwrap();
        write(writer.as_mut(), &bytes.slice(offset..), 300 * KIB).await;
        writer.finish().await.unwrap();
        same(&get_whole(blobs.as_ref(), generation, size).await.unwrap(), &bytes);
    }
}

pub async fn a_checkpoint_without_new_bytes_changes_nothing(place: &dyn Place) {
    let blobs = place.open().await;
    for size in [0, 10, 6 * MIB, 7 * MIB] {
        let bytes = content(4, size);
        let generation = Generation::random();
        let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
        write(writer.as_mut(), &bytes, MIB).await;
        let state = writer.checkpoint().await.unwrap();
        assert_eq!(writer.checkpoint().await.unwrap(), state);
        drop(writer);
        let mut writer = blobs.writer(generation, size as u64, &state).await.unwrap();
        assert_eq!(writer.checkpoint().await.unwrap(), state);
        writer.finish().await.unwrap();
        same(&get_whole(blobs.as_ref(), generation, size).await.unwrap(), &bytes);
    }
}

pub async fn bytes_after_the_checkpoint_are_overwritten(place: &dyn Place) {
    for (kept, lost, rest) in [(0, 7 * MIB, 10), (10, 2 * MIB, MIB), (7 * MIB, 14 * MIB, 0), (7 * MIB, MIB, 13 * MIB)] {
        let (kept, lost, rest) = (content(5, kept), content(6, lost), content(7, rest));
        let generation = Generation::random();
        let blobs = place.open().await;
        let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
        write(writer.as_mut(), &kept, 100 * KIB).await;
        let state = if kept.is_empty() { WriterState::default() } else { writer.checkpoint().await.unwrap() };
        write(writer.as_mut(), &lost, 100 * KIB).await;
        drop(writer);

        let mut writer = blobs.writer(generation, kept.len() as u64, &state).await.unwrap();
        write(writer.as_mut(), &rest, 100 * KIB).await;
        writer.finish().await.unwrap();
        let whole = [kept, rest].concat();
        same(&get_whole(blobs.as_ref(), generation, whole.len()).await.unwrap(), &whole);
    }
}

pub async fn finishing_again_what_was_not_committed_succeeds(place: &dyn Place) {
    for (before, after) in
        [(0, 0), (0, 10), (10, 0), (10, 10), (7 * MIB, 0), (7 * MIB, 10), (0, 7 * MIB), (MIB, 13 * MIB)]
    {
        let (before, after) = (content(8, before), content(9, after));
        let whole = [before.clone(), after.clone()].concat();
        let generation = Generation::random();
        let mut state = WriterState::default();
        if !before.is_empty() {
            let mut writer = place.open().await.writer(generation, 0, &state).await.unwrap();
            write(writer.as_mut(), &before, 100 * KIB).await;
            state = writer.checkpoint().await.unwrap();
        }
        for _ in 0..2 {
            let blobs = place.open().await;
            let mut writer = blobs.writer(generation, before.len() as u64, &state).await.unwrap();
            write(writer.as_mut(), &after, 100 * KIB).await;
            writer.finish().await.unwrap();
            same(&get_whole(blobs.as_ref(), generation, whole.len()).await.unwrap(), &whole);
        }
    }
}

pub async fn finishing_again_with_other_bytes_leaves_only_those(place: &dyn Place) {
    let before = content(10, 7 * MIB);
    // As many bytes, fewer, none, and so many that a part is full before the end.
    for (first, then) in [(MIB, MIB), (2 * MIB, MIB), (MIB, 0), (0, 1), (8 * MIB, 6 * MIB)] {
        let (first, then) = (content(11, first), content(12, then));
        let blobs = place.open().await;
        let generation = Generation::random();
        let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
        write(writer.as_mut(), &before, 100 * KIB).await;
        let state = writer.checkpoint().await.unwrap();
        write(writer.as_mut(), &first, 100 * KIB).await;
        writer.finish().await.unwrap();

        let mut writer = blobs.writer(generation, before.len() as u64, &state).await.unwrap();
        write(writer.as_mut(), &then, 100 * KIB).await;
        writer.finish().await.unwrap();
        let whole = [before.clone(), then].concat();
        same(&get_whole(blobs.as_ref(), generation, whole.len()).await.unwrap(), &whole);
    }
}

pub async fn a_blob_of_another_size_is_never_served(place: &dyn Place) {
    let blobs = place.open().await;
    let generation = put(blobs.as_ref(), &content(13, 1000)).await;
    for (size, range) in [(999, 0..999), (1001, 0..1001), (1001, 0..1), (2000, 1500..2000), (999, 998..999), (0, 0..0)]
    {
        inconsistent(blobs.read(generation, size, range).await.map(|_| ()));
    }
}

pub async fn a_missing_blob_is_inconsistent(place: &dyn Place) {
    let blobs = place.open().await;
    inconsistent(blobs.read(Generation::random(), 10, 0..10).await.map(|_| ()));
}

pub async fn a_writer_wants_the_acknowledged_bytes_to_be_there(place: &dyn Place) {
    let blobs = place.open().await;
    inconsistent(blobs.writer(Generation::random(), 10, &WriterState::default()).await.map(|_| ()));

    let generation = Generation::random();
    let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
    write(writer.as_mut(), &content(14, 10), 10).await;
    let state = writer.checkpoint().await.unwrap();
    drop(writer);
    inconsistent(blobs.writer(generation, 11, &state).await.map(|_| ()));
}

pub async fn deleting_is_idempotent(place: &dyn Place) {
    let blobs = place.open().await;
    let state = WriterState::default();
    blobs.delete(Generation::random(), &state).await.unwrap();
    let other = put(blobs.as_ref(), &content(15, 10)).await;
    for size in [0, 10, 7 * MIB] {
        let generation = put(blobs.as_ref(), &content(16, size)).await;
        blobs.delete(generation, &state).await.unwrap();
        inconsistent(blobs.read(generation, size as u64, 0..size as u64).await.map(|_| ()));
        blobs.delete(generation, &state).await.unwrap();
    }
    same(&get_whole(blobs.as_ref(), other, 10).await.unwrap(), &content(15, 10));
}

pub async fn a_half_written_blob_is_deleted_with_what_it_left(place: &dyn Place) {
    let blobs = place.open().await;
    for size in [0, 10, 6 * MIB, 14 * MIB] {
        let generation = Generation::random();
        let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
        write(writer.as_mut(), &content(17, size), 100 * KIB).await;
        let state = writer.checkpoint().await.unwrap();
        drop(writer);
        for _ in 0..2 {
            blobs.delete(generation, &state).await.unwrap();
            inconsistent(blobs.read(generation, size as u64, 0..size as u64).await.map(|_| ()));
        }
    }
}

pub async fn generations_are_written_side_by_side(place: &dyn Place) {
    let blobs = place.open().await;
    join_all((0..24).map(|n| {
        let blobs = blobs.clone();
        async move {
            let bytes = content(100 + n, MIB + 300_000 * n as usize);
            let generation = put(blobs.as_ref(), &bytes).await;
            same(&get_whole(blobs.as_ref(), generation, bytes.len()).await.unwrap(), &bytes);
        }
    }))
    .await;
}

pub async fn a_blob_is_read_many_times_at_once(place: &dyn Place) {
    let blobs = place.open().await;
    let bytes = content(18, 3 * MIB + 1);
    let generation = put(blobs.as_ref(), &bytes).await;
    // All streams are open before any is drained, and then they take turns.
    let streams =
        join_all((0..10).map(|n| blobs.read(generation, bytes.len() as u64, n * 1000..bytes.len() as u64))).await;
    let read = join_all(streams.into_iter().map(|stream| stream.unwrap().try_collect::<Vec<_>>())).await;
    for (n, chunks) in read.into_iter().enumerate() {
        same(&chunks.unwrap().concat().into(), &bytes[n * 1000..]);
    }
}

pub async fn a_reader_may_stop_half_way(place: &dyn Place) {
    let blobs = place.open().await;
    let bytes = content(19, 3 * MIB);
    let generation = put(blobs.as_ref(), &bytes).await;
    let mut stream = blobs.read(generation, bytes.len() as u64, 0..bytes.len() as u64).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    drop(stream);
    // What was handed out stays what it was while others read.
    same(&get_whole(blobs.as_ref(), generation, bytes.len()).await.unwrap(), &bytes);
    same(&first, &bytes[..first.len()]);
}

pub async fn what_an_upload_must_remember_is_bounded(place: &dyn Place) {
    let blobs = place.open().await;
    let generation = Generation::random();
    let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
    let bytes = content(20, 5 * MIB);
    for _ in 0..5 {
        write(writer.as_mut(), &bytes, 400 * KIB).await;
        let state = writer.checkpoint().await.unwrap();
        assert!(state.0.len() < 7 * MIB, "{} bytes of state", state.0.len());
    }
    drop(writer);
    blobs.delete(generation, &WriterState::default()).await.unwrap();
}

pub async fn an_open_store_is_ready(place: &dyn Place) {
    place.open().await.ready().await.unwrap();
}
