use super::*;
use oci_spec::runtime::{Root, SpecBuilder};
