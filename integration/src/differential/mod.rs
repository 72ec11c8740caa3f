//! joey's OCI command line held against runc's: the same specs and the same commands, and what
//! each makes of them.
//!
//! A [`case::Case`] of the [`corpus`] is run under both ([`run`]); what is seen of it from inside
//! ([`probe`]) and outside is one JSON value each, and [`compare`] finds where they differ. What may
//! differ stands with its reason in [`expected`]; [`report`] judges a whole run.

pub mod bundle;
pub mod case;
pub mod compare;
pub mod console;
pub mod corpus;
pub mod document;
pub mod expected;
pub mod host;
pub mod probe;
pub mod report;
pub mod run;
