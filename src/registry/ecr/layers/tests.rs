//! Positions and encodings of the parts of a layer.

use super::*;

fn part(first: u64, last: u64) -> Part {
    Part { first, last, digest: Digest::sha256(&first.to_be_bytes()) }
}

fn after(parts: &[(u64, u64)]) -> (Parts, u64) {
    parts.iter().fold((Parts::default(), 0), |(parts, offset), &(first, last)| {
        match parts.position(offset, part(first, last)) {
            PartPosition::Append(parts) => (parts, last + 1),
            other => panic!("{first}-{last}: {other:?}"),
        }
    })
}

#[test]
fn parts_follow_each_other() {
    let (parts, offset) = after(&[(0, MIN_PART - 1), (MIN_PART, MIN_PART + 9)]);
    assert_eq!(parts.position(offset, part(offset + 1, offset + 2)), PartPosition::OutOfSequence);
    assert_eq!(parts.position(offset, part(0, MIN_PART - 1)), PartPosition::OutOfSequence);
    assert!(matches!(parts.position(offset, part(offset, offset)), PartPosition::Append(_)));
}

#[test]
fn the_last_part_may_be_sent_again_as_it_was() {
    let (parts, offset) = after(&[(0, 9)]);
    assert_eq!(parts.position(offset, part(0, 9)), PartPosition::Replay);
    let other = Part { digest: Digest::sha256(b"other"), ..part(0, 9) };
    assert_eq!(parts.position(offset, other), PartPosition::OutOfSequence);
}

#[test]
fn only_the_last_part_may_be_small() {
    assert!(!after(&[(0, 9)]).0.too_small);
    assert!(!after(&[(0, MIN_PART - 1), (MIN_PART, MIN_PART)]).0.too_small);
    assert!(after(&[(0, MIN_PART - 2), (MIN_PART - 1, MIN_PART)]).0.too_small);
}

#[test]
fn the_number_of_parts_is_limited() {
    let full = Parts { count: MAX_PARTS, ..Parts::default() };
    assert_eq!(full.position(0, part(0, 9)), PartPosition::TooMany);
}

#[test]
fn the_state_of_parts_round_trips() {
    let (parts, _) = after(&[(0, 9)]);
    assert_eq!(Parts::parse(&serde_json::to_vec(&parts).unwrap()), parts);
    assert_eq!(Parts::parse(b""), Parts::default());
}

#[test]
fn parts_are_base64_and_nothing_else() {
    let read = |body: &str| input::parse::<UploadPart>(body.as_bytes());
    let blob = read(r#"{"layerPartBlob": "aGk="}"#).unwrap().layer_part_blob.unwrap();
    assert_eq!(blob.0.as_ref(), b"hi");
    for body in [
        r#"{"layerPartBlob": "%"}"#,
        r#"{"layerPartBlob": [1]}"#,
        r#"{"partFirstByte": "0"}"#,
        "[]",
    ] {
        assert!(matches!(read(body), Err(EcrError::Serialization(_))), "{body}");
    }
    assert!(upload_id(Some("../../etc/passwd")).is_err());
    assert!(upload_id(Some("00000000000000000000000000000000")).is_err());
    assert!(not_negative("partFirstByte", Some(-1)).is_err());
}
