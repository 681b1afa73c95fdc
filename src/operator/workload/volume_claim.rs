//! The volume of a single pod: the template of its claim, and the changes of the claim when the Registry changes.
//!
//! The templates of a StatefulSet are immutable, and one that is created again uses the existing claim. So a volume grows by its
//! claim, and the template stays as it was. While there is no volume, nothing can be lost: then the StatefulSet is created again
//! with another template, and a person deletes the claim, which is created again from that.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::Value;

use super::Names;

/// The name of the template, and of the volume in the pod.
pub(super) const TEMPLATE: &str = "data";
/// The default size of a volume for images.
pub(super) const IMAGES_SIZE: &str = "10Gi";
/// The default size of a volume for the database alone.
pub(super) const DATABASE_SIZE: &str = "2Gi";
const STORAGE: &str = "storage";

/// A volume that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Volume {
    size: Quantity,
    /// True if the Registry names the size: a default changes no existing volume.
    sized: bool,
    class: Option<String>,
}

/// The change of an existing claim.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum VolumeChange {
    /// It is as wanted.
    Keep,
    /// It requests this size.
    Grow(Quantity),
    /// It gets this StorageClass, because it has neither a class nor a volume.
    Classify(String),
    /// It cannot be changed as wanted; the message says why, and what to do.
    Refuse(String),
}

impl Volume {
    pub(super) fn new(size: Option<Quantity>, default: &str, class: Option<String>) -> Self {
        Self {
            sized: size.is_some(),
            size: size.unwrap_or_else(|| Quantity(default.to_owned())),
            class,
        }
    }

    /// Returns the claim's template.
    pub(super) fn template(&self, names: &Names) -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(TEMPLATE.to_owned()),
                labels: Some(names.selector()),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                storage_class_name: self.class.clone(),
                resources: Some(VolumeResourceRequirements {
                    requests: Some(BTreeMap::from([(STORAGE.to_owned(), self.size.clone())])),
                    limits: None,
                }),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }
}

/// Returns whether a claim has a volume, or one is reserved for it: then it may contain data.
pub(crate) fn has_volume(claim: &PersistentVolumeClaim) -> bool {
    let named = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref())
        .is_some_and(|name| !name.is_empty());
    // The volume of a lost claim is gone, yet something was in it.
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    named || matches!(phase, Some("Bound" | "Lost"))
}

/// Decides how to change the claim `current`.
pub(crate) fn claim(wanted: &Volume, current: &PersistentVolumeClaim) -> VolumeChange {
    let there = has_volume(current);
    let recreate = |is: &str, wanted: &str| {
        let (namespace, name) = (current.namespace().unwrap_or_default(), current.name_any());
        VolumeChange::Refuse(format!(
            "PersistentVolumeClaim {namespace}/{name} waits for a volume of {is} and can't ask for {wanted} instead: nothing is \
             in it yet, so delete it, and it is created again"
        ))
    };
    let spec = current.spec.as_ref();
    let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
    if let (Some(wanted), Some(class)) = (wanted.class.as_deref(), class)
        && wanted != class
    {
        if !there {
            return recreate(&format!("StorageClass {class}"), wanted);
        }
        return VolumeChange::Refuse(format!(
            "the volume is of StorageClass {class} and can't become one of {wanted}: set storageClassName back, or make \
             another Registry and replicate to it"
        ));
    }
    let requests = spec
        .and_then(|spec| spec.resources.as_ref())
        .and_then(|resources| resources.requests.as_ref());
    if let Some(size) = requests.and_then(|requests| requests.get(STORAGE)).filter(|_| wanted.sized)
    {
        match (amount(&wanted.size), amount(size)) {
            (Some(wanted_amount), Some(amount)) if wanted_amount != amount && !there => {
                return recreate(&size.0, &wanted.size.0);
            }
            (Some(wanted_amount), Some(amount)) if wanted_amount > amount => {
                return VolumeChange::Grow(wanted.size.clone());
            }
            (Some(wanted_amount), Some(amount)) if wanted_amount < amount => {
                return VolumeChange::Refuse(format!(
                    "the volume has {} and can't shrink to {}: set size back, or make another Registry and replicate to it",
                    size.0, wanted.size.0
                ));
            }
            (Some(_), _) => {}
            (None, _) => {
                return VolumeChange::Refuse(format!(
                    "{:?} is no size: write it as 100Gi",
                    wanted.size.0
                ));
            }
        }
    }
    match (&wanted.class, class) {
        (Some(wanted), None) if !there => VolumeChange::Classify(wanted.clone()),
        _ => VolumeChange::Keep,
    }
}

/// Returns whether an existing StatefulSet creates its claim with another size or class than the wanted one.
pub(crate) fn claims_otherwise(wanted: &Value, current: &Value) -> bool {
    let asked = |set: &Value| {
        let spec = &set["spec"]["volumeClaimTemplates"][0]["spec"];
        let size =
            spec["resources"]["requests"][STORAGE].as_str().map(|size| Quantity(size.to_owned()));
        (spec["storageClassName"].as_str().map(str::to_owned), size.as_ref().and_then(amount))
    };
    let wanted = asked(wanted);
    // The API server refuses an invalid size. Nothing is removed for it.
    wanted.1.is_some() && wanted != asked(current)
}

/// Gives a wanted StatefulSet the templates of the existing one.
pub(crate) fn keep_templates(wanted: &mut Value, current: &Value) {
    let templates = &current["spec"]["volumeClaimTemplates"];
    if templates.is_array() {
        wanted["spec"]["volumeClaimTemplates"] = templates.clone();
    }
}

/// Parses a quantity, as exactly as comparing two of them needs.
fn amount(quantity: &Quantity) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let text = quantity.0.trim();
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1.0));
    // Rust reads names of numbers, too, which no quantity is.
    let written = digits.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
    digits
        .parse::<f64>()
        .ok()
        .filter(|amount| written && amount.is_finite())
        .map(|amount| amount * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn current(size: &str, class: &str) -> PersistentVolumeClaim {
        let spec = json!({ "storageClassName": class, "volumeName": "pv", "resources": { "requests": { "storage": size } } });
        let status = json!({ "phase": "Bound" });
        serde_json::from_value(
            json!({ "metadata": { "name": "data-home-0" }, "spec": spec, "status": status }),
        )
        .unwrap()
    }

    /// A claim that has no volume yet.
    fn pending(size: &str, class: Option<&str>) -> PersistentVolumeClaim {
        let spec =
            json!({ "storageClassName": class, "resources": { "requests": { "storage": size } } });
        let metadata = json!({ "name": "data-home-0", "namespace": "one" });
        serde_json::from_value(
            json!({ "metadata": metadata, "spec": spec, "status": { "phase": "Pending" } }),
        )
        .unwrap()
    }

    fn wanted(size: Option<&str>, class: Option<&str>) -> Volume {
        Volume::new(
            size.map(|size| Quantity(size.to_owned())),
            IMAGES_SIZE,
            class.map(str::to_owned),
        )
    }

    #[test]
    fn a_volume_grows_and_never_shrinks() {
        let there = current("100Gi", "fast");
        assert_eq!(
            claim(&wanted(Some("200Gi"), None), &there),
            VolumeChange::Grow(Quantity("200Gi".to_owned()))
        );
        assert_eq!(claim(&wanted(Some("107374182400"), None), &there), VolumeChange::Keep);
        let VolumeChange::Refuse(why) = claim(&wanted(Some("50Gi"), None), &there) else {
            panic!("it shrinks")
        };
        assert_eq!(
            why,
            "the volume has 100Gi and can't shrink to 50Gi: set size back, or make another Registry and replicate to it"
        );
    }

    #[test]
    fn a_size_that_is_no_longer_given_leaves_the_volume_as_it_is() {
        assert_eq!(claim(&wanted(None, None), &current("100Gi", "fast")), VolumeChange::Keep);
    }

    #[test]
    fn a_volume_does_not_change_its_class() {
        assert_eq!(claim(&wanted(None, Some("fast")), &current("1Gi", "fast")), VolumeChange::Keep);
        let VolumeChange::Refuse(why) = claim(&wanted(None, Some("slow")), &current("1Gi", "fast"))
        else {
            panic!("it does")
        };
        assert!(why.contains("StorageClass fast") && why.contains("slow"), "{why}");
    }

    #[test]
    fn a_claim_without_class_and_volume_gets_its_class() {
        let fast = VolumeChange::Classify("fast".to_owned());
        assert_eq!(claim(&wanted(None, Some("fast")), &pending("10Gi", None)), fast);
        assert_eq!(claim(&wanted(Some("10Gi"), Some("fast")), &pending("10Gi", None)), fast);
        assert_eq!(claim(&wanted(None, None), &pending("10Gi", None)), VolumeChange::Keep);
        let mut bound = current("10Gi", "");
        bound.spec.as_mut().unwrap().storage_class_name = None;
        assert_eq!(claim(&wanted(None, Some("fast")), &bound), VolumeChange::Keep);
    }

    #[test]
    fn a_claim_without_a_volume_that_is_to_be_another_is_a_persons_to_delete() {
        let refused = |wanted: &Volume, class| match claim(wanted, &pending("10Gi", class)) {
            VolumeChange::Refuse(why) => why,
            other => panic!("{other:?}"),
        };
        let last = "nothing is in it yet, so delete it, and it is created again";
        assert_eq!(
            refused(&wanted(None, Some("fast")), Some("fsat")),
            format!(
                "PersistentVolumeClaim one/data-home-0 waits for a volume of StorageClass fsat and can't ask for fast instead: {last}"
            )
        );
        for (size, class) in [("5Gi", Some("fast")), ("20Gi", Some("fast")), ("20Gi", None)] {
            assert_eq!(
                refused(&wanted(Some(size), class), class),
                format!(
                    "PersistentVolumeClaim one/data-home-0 waits for a volume of 10Gi and can't ask for {size} instead: {last}"
                )
            );
        }
        // Both at once: by the size alone, as the claim that is created again has the class.
        assert!(refused(&wanted(Some("5Gi"), Some("fast")), None).contains("can't ask for 5Gi"));
        assert_eq!(
            claim(&wanted(Some("10240Mi"), Some("fast")), &pending("10Gi", Some("fast"))),
            VolumeChange::Keep
        );
        assert_eq!(claim(&wanted(None, None), &pending("100Gi", Some("fast"))), VolumeChange::Keep);
    }

    #[test]
    fn what_may_hold_something_counts_as_a_volume() {
        assert!(!has_volume(&pending("1Gi", None)));
        assert!(has_volume(&current("1Gi", "fast")));
        for (phase, volume, expected) in [
            (None, None, false),
            (Some("Pending"), Some(""), false),
            (Some("Pending"), Some("pv"), true),
            (Some("Bound"), None, true),
            (Some("Lost"), None, true),
        ] {
            let claim = json!({ "metadata": {}, "spec": { "volumeName": volume }, "status": { "phase": phase } });
            assert_eq!(
                has_volume(&serde_json::from_value(claim).unwrap()),
                expected,
                "{phase:?} {volume:?}"
            );
        }
    }

    #[test]
    fn a_stateful_set_claims_otherwise_by_size_or_class() {
        let set = |size: &str, class: Option<&str>| {
            let mut spec = json!({ "resources": { "requests": { "storage": size } } });
            if let Some(class) = class {
                spec["storageClassName"] = json!(class);
            }
            // Fields that an API server adds are no difference.
            let template = json!({ "kind": "PersistentVolumeClaim", "spec": spec, "status": { "phase": "Pending" } });
            json!({ "spec": { "volumeClaimTemplates": [template] } })
        };
        let there = set("10Gi", Some("fast"));
        for (wanted, expected) in [
            (set("10Gi", Some("fast")), false),
            (set("10240Mi", Some("fast")), false),
            (set("10Gi", Some("slow")), true),
            (set("10Gi", None), true),
            (set("20Gi", Some("fast")), true),
            (set("much", Some("slow")), false),
        ] {
            assert_eq!(claims_otherwise(&wanted, &there), expected, "{wanted}");
        }
        assert!(claims_otherwise(&there, &set("10Gi", None)));
    }

    #[test]
    fn quantities_are_compared_by_what_they_amount_to() {
        for (text, expected) in [
            ("1Ki", 1024.0),
            ("1k", 1000.0),
            ("1e3", 1000.0),
            ("1.5Gi", 1_610_612_736.0),
            ("500m", 0.5),
            ("2E", 2e18),
        ] {
            assert_eq!(amount(&Quantity(text.to_owned())), Some(expected), "{text}");
        }
        for text in ["", "many", "Gi", "nan", "inf", "1Zi"] {
            assert_eq!(amount(&Quantity(text.to_owned())), None, "{text}");
        }
        assert!(matches!(
            claim(&wanted(Some("much"), None), &current("1Gi", "fast")),
            VolumeChange::Refuse(_)
        ));
    }
}
