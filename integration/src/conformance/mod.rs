//! Conformance suites, run with runc and with joey: how each test ended ([`results`]), and
//! what a suite's document says beforehand about tests that joey cannot pass ([`document`]).
//! critest reports in [`ginkgo`]'s form, the OCI's validation suite in [`tap`]'s.

pub mod document;
pub mod ginkgo;
pub mod results;
pub mod tap;
