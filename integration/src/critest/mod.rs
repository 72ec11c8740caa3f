//! critest, the conformance tests of the CRI: what a run says ([`results`]), and what
//! docs/critest.md says beforehand about the tests that cannot pass in a VM
//! ([`document`]).

pub mod document;
pub mod results;
