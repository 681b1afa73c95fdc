//! Lifecycle policies: the document ([`Policy`]) and what it does to a repository's images ([`evaluate()`]).
//!
//! Pure: no I/O, no clock. The preview, the enforcing job and the operator all call the same function.

mod document;
mod evaluate;
mod grammar;

pub use document::{
    Action, Count, InvalidPolicy, MAX_LENGTH, MIN_LENGTH, Policy, Rule, StorageClass, TagSelection,
};
pub use document::{check_length, check_template_length};
pub use evaluate::{Cause, Evaluation, Image, ImageStatus, Mark, Protected, Summary, evaluate};

#[cfg(test)]
mod examples;
#[cfg(test)]
mod naive;
