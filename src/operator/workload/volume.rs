//! The volume of a single pod: its claim's template, and what becomes of the claim when the Registry's wishes change.
//!
//! A StatefulSet's templates can't be changed, and one that is made anew takes the claim that is there. So a volume grows by
//! its claim, and the template stays as it was.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::Names;

/// The name of the template, and of the volume in the pod.
pub(super) const TEMPLATE: &str = "data";
/// The size of a volume for images where none is given.
pub(super) const IMAGES_SIZE: &str = "10Gi";
/// The size of a volume for nothing but the database where none is given.
pub(super) const DATABASE_SIZE: &str = "2Gi";
const STORAGE: &str = "storage";

/// A volume that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    size: Quantity,
    /// Whether the Registry names the size: a default isn't a wish.
    sized: bool,
    class: Option<String>,
}

/// What is to be done about the claim that is there.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// It is as wanted.
    Keep,
    /// It is to ask for this size.
    Grow(Quantity),
    /// It can't be made what is wanted; the sentence says why, and what to do.
    Refuse(String),
}

impl Volume {
    pub(super) fn new(size: Option<Quantity>, default: &str, class: Option<String>) -> Self {
        Self { sized: size.is_some(), size: size.unwrap_or_else(|| Quantity(default.to_owned())), class }
    }

    /// The claim's template.
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

/// What is to be done about the claim `current` for it to be `wanted`.
pub fn claim(wanted: &Volume, current: &PersistentVolumeClaim) -> Claim {
    let spec = current.spec.as_ref();
    let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
    if let (Some(wanted), Some(class)) = (wanted.class.as_deref(), class)
        && wanted != class
    {
        return Claim::Refuse(format!(
            "the volume is of StorageClass {class} and can't become one of {wanted}: set storageClassName back, or make \
             another Registry and replicate to it"
        ));
    }
    let requests = spec.and_then(|spec| spec.resources.as_ref()).and_then(|resources| resources.requests.as_ref());
    let Some(size) = requests.and_then(|requests| requests.get(STORAGE)) else { return Claim::Keep };
    if !wanted.sized {
        return Claim::Keep;
    }
    match (amount(&wanted.size), amount(size)) {
        (Some(wanted_amount), Some(amount)) if wanted_amount > amount => Claim::Grow(wanted.size.clone()),
        (Some(wanted_amount), Some(amount)) if wanted_amount < amount => Claim::Refuse(format!(
            "the volume has {} and can't shrink to {}: set size back, or make another Registry and replicate to it",
            size.0, wanted.size.0
        )),
        (Some(_), _) => Claim::Keep,
        (None, _) => Claim::Refuse(format!("{:?} is no size: write it as 100Gi", wanted.size.0)),
    }
}

/// Gives a StatefulSet that is to be applied the templates of the one that is there.
pub fn keep_templates(wanted: &mut Value, current: &Value) {
    let templates = &current["spec"]["volumeClaimTemplates"];
    if templates.is_array() {
        wanted["spec"]["volumeClaimTemplates"] = templates.clone();
    }
}

/// The amount that a quantity writes, as far as comparing two of them needs it.
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
    let (digits, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor))).unwrap_or((text, 1.0));
    // Rust reads names of numbers, too, which no quantity is.
    let written = digits.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
    digits.parse::<f64>().ok().filter(|amount| written && amount.is_finite()).map(|amount| amount * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn current(size: &str, class: &str) -> PersistentVolumeClaim {
        let spec = json!({ "storageClassName": class, "resources": { "requests": { "storage": size } } });
        serde_json::from_value(json!({ "metadata": { "name": "data-home-0" }, "spec": spec })).unwrap()
    }

    fn wanted(size: Option<&str>, class: Option<&str>) -> Volume {
        Volume::new(size.map(|size| Quantity(size.to_owned())), IMAGES_SIZE, class.map(str::to_owned))
    }

    #[test]
    fn a_volume_grows_and_never_shrinks() {
        let there = current("100Gi", "fast");
        assert_eq!(claim(&wanted(Some("200Gi"), None), &there), Claim::Grow(Quantity("200Gi".to_owned())));
        assert_eq!(claim(&wanted(Some("107374182400"), None), &there), Claim::Keep);
        let Claim::Refuse(why) = claim(&wanted(Some("50Gi"), None), &there) else { panic!("it shrinks") };
        assert_eq!(
            why,
            "the volume has 100Gi and can't shrink to 50Gi: set size back, or make another Registry and replicate to it"
        );
    }

    #[test]
    fn a_size_that_is_no_longer_given_leaves_the_volume_as_it_is() {
        assert_eq!(claim(&wanted(None, None), &current("100Gi", "fast")), Claim::Keep);
    }

    #[test]
    fn a_volume_does_not_change_its_class() {
        assert_eq!(claim(&wanted(None, Some("fast")), &current("1Gi", "fast")), Claim::Keep);
        let Claim::Refuse(why) = claim(&wanted(None, Some("slow")), &current("1Gi", "fast")) else { panic!("it does") };
        assert!(why.contains("StorageClass fast") && why.contains("slow"), "{why}");
    }

    #[test]
    fn quantities_are_compared_by_what_they_amount_to() {
        for (text, expected) in
            [("1Ki", 1024.0), ("1k", 1000.0), ("1e3", 1000.0), ("1.5Gi", 1_610_612_736.0), ("500m", 0.5), ("2E", 2e18)]
        {
            assert_eq!(amount(&Quantity(text.to_owned())), Some(expected), "{text}");
        }
        for text in ["", "many", "Gi", "nan", "inf", "1Zi"] {
            assert_eq!(amount(&Quantity(text.to_owned())), None, "{text}");
        }
        assert!(matches!(claim(&wanted(Some("much"), None), &current("1Gi", "fast")), Claim::Refuse(_)));
    }
}
