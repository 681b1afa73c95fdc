//! Lists of images and tags, and recorded pulls.

use wharfage::store::images::{
    ImageFilter, ImageIdentifier, ImageStatus, LastTag, ReferrerFilter, StorageClass,
    TagStatusFilter,
};

use super::*;

/// Reads every page of `limit`, and checks that none is longer and that only the last is shorter.
async fn pages<T: Clone>(limit: usize, read: impl AsyncFn(Option<T>) -> Vec<T>) -> Vec<T> {
    let mut all: Vec<T> = Vec::new();
    loop {
        let page = read(all.last().cloned()).await;
        assert!(page.len() <= limit, "a page is at most {limit} long");
        let last = page.len() < limit;
        all.extend(page);
        if last {
            return all;
        }
    }
}

/// Creates active and archived images, with and without tags.
async fn mixed(store: &Fixture) -> Repository {
    let repository = store.repository_named("app").await;
    store.image(&repository, "active tagged", &["b", "a"]).await;
    store.image(&repository, "active untagged", &[]).await;
    for (payload, names) in [("archived tagged", &["c"][..]), ("archived untagged", &[])] {
        let image = store.image(&repository, payload, names).await;
        store.set_storage_class(repository.id, &image, StorageClass::Archive, at(1)).await.unwrap();
    }
    repository
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort();
    items
}

pub async fn tags_are_listed_in_byte_order_in_pages(store: Fixture) {
    let repository = store.repository_named("app").await;
    store.image(&repository, "image", &["b", "B", "a-1", "a.1", "a_1", "_x", "10", "9"]).await;
    let expected = tags(&["10", "9", "B", "_x", "a-1", "a.1", "a_1", "b"]);
    for limit in [1, 3, 8, 100] {
        let read = async |after: Option<Tag>| {
            store.list_tags(repository.id, after.as_ref().map(Tag::as_str), limit).await.unwrap()
        };
        assert_eq!(pages(limit, read).await, expected);
    }
    assert_eq!(
        store.list_tags(repository.id, Some("a"), 2).await.unwrap(),
        tags(&["a-1", "a.1"]),
        "no tag itself"
    );
    assert_eq!(store.list_tags(repository.id, None, 0).await.unwrap(), []);
}

pub async fn tags_of_archived_images_are_not_listed(store: Fixture) {
    let repository = mixed(&store).await;
    assert_eq!(store.list_tags(repository.id, None, 10).await.unwrap(), tags(&["a", "b"]));
}

pub async fn a_tag_is_listed_while_its_image_is_active(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (one, two) = (
        store.image(&repository, "one", &["a", "b", "c"]).await,
        store.image(&repository, "two", &["d"]).await,
    );
    let set = async |image: &Digest, class: StorageClass| {
        store.set_storage_class(repository.id, image, class, at(1)).await.unwrap()
    };
    let listed = async || store.list_tags(repository.id, None, 10).await.unwrap();
    set(&one, StorageClass::Archive).await;
    assert_eq!(listed().await, tags(&["d"]));
    store.image(&repository, "two", &["b"]).await;
    assert_eq!(listed().await, tags(&["b", "d"]), "moved to an active image");
    set(&one, StorageClass::Standard).await;
    assert_eq!(listed().await, tags(&["a", "b", "c", "d"]), "restored");
    set(&one, StorageClass::Archive).await;
    store.image(&repository, "one", &["d"]).await;
    assert_eq!(listed().await, tags(&["a", "b", "c", "d"]), "restored by a push");
    set(&one, StorageClass::Archive).await;
    store.index(&repository, &[&one], &["e"]).await;
    assert_eq!(
        listed().await,
        tags(&["a", "b", "c", "d", "e"]),
        "restored by the push of an index"
    );
    store.delete_image(repository.id, &two, Referrers::Stay, at(2)).await.unwrap();
    assert_eq!(listed().await, tags(&["a", "c", "d", "e"]));
}

pub async fn tags_that_the_oci_api_cannot_name_are_not_listed(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (short, long) = ("t".repeat(128), "t".repeat(129));
    store.image(&repository, "image", &[&short, &long, "u"]).await;
    assert_eq!(store.list_tags(repository.id, None, 10).await.unwrap(), tags(&[&short, "u"]));
    assert_eq!(
        store.list_tags(repository.id, Some(&short), 1).await.unwrap(),
        tags(&["u"]),
        "a page is full without them"
    );
    let found = store.image_of(&repository, &digest("image")).await.unwrap();
    assert_eq!(found.tags.len(), 3);
}

pub async fn images_are_found_by_reference_in_the_order_given(store: Fixture) {
    let repository = mixed(&store).await;
    let references: Vec<Reference> =
        ["c", "nothing", digest("active untagged").as_str(), "a", digest("nothing").as_str(), "a"]
            .map(reference_to)
            .into();
    let found = store.find_images(repository.id, &references).await.unwrap();
    let found: Vec<_> =
        found.into_iter().map(|image| image.map(|it| (it.image.digest, it.tags))).collect();
    let tagged = Some((digest("active tagged"), tags(&["a", "b"])));
    assert_eq!(
        found,
        [
            Some((digest("archived tagged"), tags(&["c"]))),
            None,
            Some((digest("active untagged"), vec![])),
            tagged.clone(),
            None,
            tagged
        ]
    );
    assert_eq!(store.find_images(repository.id, &[]).await.unwrap(), []);
}

pub async fn images_are_listed_in_pages_with_their_tags(store: Fixture) {
    let repository = store.repository_named("app").await;
    let mut expected = Vec::new();
    for number in 0..7 {
        let (low, high) = (format!("a{number}"), format!("b{number}"));
        let names: &[&str] = if number % 2 == 0 { &[&high, &low] } else { &[] };
        let image = store.image(&repository, &format!("image {number}"), names).await;
        expected.push((image, sorted(tags(names))));
    }
    expected.sort();
    for limit in [1, 3, 7, 100] {
        let read = async |after: Option<(Digest, Vec<Tag>)>| {
            let after = after.as_ref().map(|(digest, _)| digest);
            let page = store
                .list_images(repository.id, ImageFilter::EVERYTHING, after, limit)
                .await
                .unwrap();
            page.into_iter().map(|it| (it.image.digest, it.tags)).collect()
        };
        assert_eq!(pages(limit, read).await, expected);
    }
}

/// Returns each filter with the payloads that match it.
fn filters() -> [(TagStatusFilter, Option<ImageStatus>, &'static [&'static str]); 8] {
    use ImageStatus::{Activating, Active, Archived};
    use TagStatusFilter::{Any, Tagged, Untagged};
    [
        (Any, None, &["active tagged", "active untagged", "archived tagged", "archived untagged"]),
        (Tagged, None, &["active tagged", "archived tagged"]),
        (Untagged, None, &["active untagged", "archived untagged"]),
        (Any, Some(Active), &["active tagged", "active untagged"]),
        (Tagged, Some(Active), &["active tagged"]),
        (Untagged, Some(Archived), &["archived untagged"]),
        (Any, Some(Archived), &["archived tagged", "archived untagged"]),
        (Any, Some(Activating), &[]),
    ]
}

pub async fn images_are_filtered_by_tag_and_by_status(store: Fixture) {
    let repository = mixed(&store).await;
    for (tag_status, status, payloads) in filters() {
        let filter = ImageFilter { tag_status, status };
        let expected = sorted(payloads.iter().map(|payload| digest(payload)));
        for limit in [1, 100] {
            let read = async |after: Option<Digest>| {
                let page =
                    store.list_images(repository.id, filter, after.as_ref(), limit).await.unwrap();
                page.into_iter().map(|it| it.image.digest).collect()
            };
            assert_eq!(pages(limit, read).await, expected, "{filter:?}");
        }
    }
}

pub async fn pages_of_image_ids_may_split_an_image(store: Fixture) {
    let repository = store.repository_named("app").await;
    let mut expected = Vec::new();
    for (payload, names) in [("one", &["b", "a", "c"][..]), ("two", &[]), ("three", &["x", "y"])] {
        let digest = store.image(&repository, payload, names).await;
        let entry = |tag: Option<Tag>| ImageIdentifier { digest: digest.clone(), tag };
        if names.is_empty() {
            expected.push(entry(None));
        }
        expected.extend(tags(names).into_iter().map(|tag| entry(Some(tag))));
    }
    expected.sort();
    for limit in [1, 2, 4, 100] {
        let read = async |after: Option<ImageIdentifier>| {
            store
                .list_image_ids(repository.id, ImageFilter::EVERYTHING, after.as_ref(), limit)
                .await
                .unwrap()
        };
        assert_eq!(pages(limit, read).await, expected);
    }
    // An untagged image that gets a tag between two pages is not lost.
    let after = ImageIdentifier { digest: digest("two"), tag: None };
    store.image(&repository, "two", &["late"]).await;
    let next = store
        .list_image_ids(repository.id, ImageFilter::EVERYTHING, Some(&after), 1)
        .await
        .unwrap();
    assert_eq!(next, [ImageIdentifier { digest: digest("two"), tag: Some(tag("late")) }]);
}

pub async fn image_ids_are_filtered_by_tag_and_by_status(store: Fixture) {
    let repository = mixed(&store).await;
    for (tag_status, status, payloads) in filters() {
        let filter = ImageFilter { tag_status, status };
        let entries = payloads.iter().flat_map(|payload| {
            let names: &[&str] = match *payload {
                "active tagged" => &["a", "b"],
                "archived tagged" => &["c"],
                _ => &[],
            };
            let untagged = names.is_empty().then_some(None);
            let tagged = tags(names).into_iter().map(Some);
            let digest = digest(payload);
            untagged
                .into_iter()
                .chain(tagged)
                .map(move |tag| ImageIdentifier { digest: digest.clone(), tag })
        });
        let expected = sorted(entries);
        for limit in [1, 100] {
            let read = async |after: Option<ImageIdentifier>| {
                store.list_image_ids(repository.id, filter, after.as_ref(), limit).await.unwrap()
            };
            assert_eq!(pages(limit, read).await, expected, "{filter:?}");
        }
    }
}

pub async fn index_edges_are_listed_in_pages(store: Fixture) {
    let repository = store.repository_named("app").await;
    let mut expected = Vec::new();
    let images: Vec<Digest> = {
        let mut images = Vec::new();
        for number in 0..3 {
            images.push(store.image(&repository, &format!("image {number}"), &[]).await);
        }
        images
    };
    for (payload, children) in [("one", &images[..]), ("two", &images[1..2])] {
        let held: Vec<&Digest> = children.iter().collect();
        store.index_of(&repository, payload, &held, &[]).await;
        expected.extend(children.iter().map(|child| (digest(payload), child.clone())));
    }
    store.index_of(&repository, "index of an index", &[&digest("one")], &[]).await;
    expected.push((digest("index of an index"), digest("one")));
    expected.sort();
    for limit in [1, 2, 100] {
        let read = async |after: Option<(Digest, Digest)>| {
            store.list_index_edges(repository.id, after.as_ref(), limit).await.unwrap()
        };
        assert_eq!(pages(limit, read).await, expected);
    }
}

pub async fn referrers_are_listed_in_pages_and_filtered(store: Fixture) {
    let repository = store.repository_named("app").await;
    let subject = digest("a subject that was never pushed");
    for (payload, artifact_type, config) in [
        ("sbom", Some("application/sbom"), Some("application/vnd.oci.empty.v1+json")),
        ("signature", None, Some("application/signature")),
        ("old sbom", Some("application/sbom"), None),
        ("neither", None, None),
    ] {
        let referrer = NewManifest {
            subject: Some(subject.clone()),
            artifact_type: artifact_type.map(Into::into),
            config_media_type: config.map(Into::into),
            annotations: BTreeMap::from([("of".into(), payload.into())]),
            ..manifest(payload)
        };
        store.put_manifest(put(&repository, referrer, &[])).await.unwrap();
    }
    store
        .set_storage_class(repository.id, &digest("old sbom"), StorageClass::Archive, at(1))
        .await
        .unwrap();
    let other = NewManifest { subject: Some(digest("other")), ..manifest("of another") };
    store.put_manifest(put(&repository, other, &[])).await.unwrap();

    let active = Some(ImageStatus::Active);
    for (types, status, expected) in [
        (&[][..], None, &["sbom", "signature", "old sbom", "neither"][..]),
        (&[], active, &["sbom", "signature", "neither"]),
        (&["application/sbom"], None, &["sbom", "old sbom"]),
        (&["application/sbom"], active, &["sbom"]),
        (&["application/signature", "application/sbom"], None, &["sbom", "signature", "old sbom"]),
        (&["application/vnd.oci.empty.v1+json"], None, &[]),
        (&["application/other"], None, &[]),
    ] {
        let artifact_types: Vec<String> = types.iter().map(|text: &&str| (*text).into()).collect();
        let filter = ReferrerFilter { artifact_types, status };
        for limit in [1, 100] {
            let read = async |after: Option<Digest>| {
                let page = store
                    .list_referrers(repository.id, &subject, &filter, after.as_ref(), limit)
                    .await
                    .unwrap();
                for image in &page {
                    assert_eq!(digest(&image.annotations["of"]), image.digest);
                }
                page.into_iter().map(|image| image.digest).collect()
            };
            let expected = sorted(expected.iter().map(|payload| digest(payload)));
            assert_eq!(pages(limit, read).await, expected, "{filter:?}");
        }
    }
    let all = ReferrerFilter { artifact_types: Vec::new(), status: None };
    assert_eq!(
        store.list_referrers(repository.id, &digest("sbom"), &all, None, 10).await.unwrap(),
        []
    );
}

pub async fn listings_show_one_repository_only(store: Fixture) {
    let full = mixed(&store).await;
    let empty = store.repository_named("empty").await;
    store.index(&full, &[&digest("active tagged")], &[]).await;
    let everything = ImageFilter::EVERYTHING;
    assert_eq!(store.list_tags(empty.id, None, 10).await.unwrap(), []);
    assert_eq!(store.list_images(empty.id, everything, None, 10).await.unwrap(), []);
    assert_eq!(store.list_image_ids(empty.id, everything, None, 10).await.unwrap(), []);
    assert_eq!(store.list_index_edges(empty.id, None, 10).await.unwrap(), []);
    assert_eq!(store.find_images(empty.id, &[reference_to("a")]).await.unwrap(), [None]);
}

pub async fn an_image_counts_as_tagged_while_a_tag_points_at_it(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (one, two) = (
        store.image(&repository, "one", &["x", "y"]).await,
        store.image(&repository, "two", &[]).await,
    );
    let of = async |tag_status| {
        let filter = ImageFilter { tag_status, status: None };
        let images = store.list_images(repository.id, filter, None, 10).await.unwrap();
        sorted(images.into_iter().map(|image| image.image.digest))
    };
    use TagStatusFilter::{Tagged, Untagged};
    assert_eq!((of(Tagged).await, of(Untagged).await), (vec![one.clone()], vec![two.clone()]));
    // The first move leaves another tag on the image, the second none.
    store.image(&repository, "two", &["x"]).await;
    assert_eq!(
        (of(Tagged).await, of(Untagged).await),
        (sorted([one.clone(), two.clone()]), vec![])
    );
    store.image(&repository, "two", &["y", "x"]).await;
    assert_eq!((of(Tagged).await, of(Untagged).await), (vec![two.clone()], vec![one.clone()]));
    for name in ["x", "y"] {
        store
            .delete_tag(repository.id, &tag(name), None, LastTag::KeepsImage, at(1))
            .await
            .unwrap();
    }
    assert_eq!((of(Tagged).await, of(Untagged).await), (vec![], sorted([one, two])));
}

pub async fn a_page_of_ids_ends_within_an_images_many_tags(store: Fixture) {
    let repository = store.repository_named("app").await;
    let names: Vec<String> = (0..40).map(|number| format!("t{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut expected = Vec::new();
    for (payload, of) in [("one", &names[..20]), ("two", &names[20..]), ("three", &[])] {
        let digest = store.image(&repository, payload, of).await;
        let entry = |tag: Option<Tag>| ImageIdentifier { digest: digest.clone(), tag };
        if of.is_empty() {
            expected.push(entry(None));
        }
        expected.extend(tags(of).into_iter().map(|tag| entry(Some(tag))));
    }
    expected.sort();
    let tagged =
        ImageFilter { tag_status: TagStatusFilter::Tagged, status: Some(ImageStatus::Active) };
    for limit in [1, 7, 19, 20, 21, 40, 100] {
        for filter in [ImageFilter::EVERYTHING, tagged] {
            let read = async |after: Option<ImageIdentifier>| {
                store.list_image_ids(repository.id, filter, after.as_ref(), limit).await.unwrap()
            };
            let wanted = expected
                .iter()
                .filter(|entry| filter == ImageFilter::EVERYTHING || entry.tag.is_some());
            assert_eq!(
                pages(limit, read).await,
                wanted.cloned().collect::<Vec<_>>(),
                "{limit} of {filter:?}"
            );
        }
    }
}

pub async fn a_recorded_pull_time_never_decreases(store: Fixture) {
    let repository = store.repository_named("app").await;
    let (one, two) =
        (store.image(&repository, "one", &[]).await, store.image(&repository, "two", &[]).await);
    let id = async |digest: &Digest| store.image_of(&repository, digest).await.unwrap().image.id;
    let (first, second) = (id(&one).await, id(&two).await);
    store.record_pulls(&[(first, at(20)), (second, at(5))]).await.unwrap();
    store.record_pulls(&[(first, at(10)), (second, at(6)), (second, at(4))]).await.unwrap();
    store.delete_image(repository.id, &two, Referrers::Stay, at(30)).await.unwrap();
    store.record_pulls(&[(second, at(40))]).await.unwrap();
    assert_eq!(store.image_of(&repository, &one).await.unwrap().image.last_pulled_at, Some(at(20)));
    let Lookup::Found(found) = store.found(&repository, one.as_str()).await else {
        panic!("the manifest is found")
    };
    assert_eq!(found.last_pulled_at, Some(at(20)));
}
