//! Capabilities of a process.

use std::str::FromStr;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

/// The five sets. A spec without capabilities gives none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
}

impl CapabilitySets {
    pub(crate) fn new(spec: Option<&LinuxCapabilities>) -> Result<Self, String> {
        let Some(spec) = spec else {
            return Ok(Self::default());
        };
        let sets = Self {
            bounding: set(spec.bounding())?,
            effective: set(spec.effective())?,
            permitted: set(spec.permitted())?,
            inheritable: set(spec.inheritable())?,
            ambient: set(spec.ambient())?,
        };
        if let Some(name) = sets.effective.difference(&sets.permitted).next() {
            return Err(format!("{name} is effective but not permitted"));
        }
        Ok(sets)
    }

    /// Those of the five sets that the calling process itself does not have and so cannot give.
    pub(crate) fn missing(&self) -> Vec<String> {
        let Ok(own) = caps::read(None, CapSet::Permitted) else {
            return Vec::new();
        };
        let mut missing: Vec<String> = [&self.bounding, &self.permitted]
            .into_iter()
            .flatten()
            .filter(|capability| !own.contains(capability))
            .map(Capability::to_string)
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }

    /// Takes everything out of the bounding set that is not in it here. Needs CAP_SETPCAP.
    pub(crate) fn limit_bounding(&self) -> Result<(), CapsError> {
        for capability in caps::all() {
            // The kernel answers with an error for a capability that it does not know.
            let Ok(true) = caps::has_cap(None, CapSet::Bounding, capability) else {
                continue;
            };
            if !self.bounding.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
        Ok(())
    }

    /// Sets the other four. What the process does not have it cannot be given; the specification
    /// wants that to be no error.
    pub(crate) fn apply(&self) -> Result<(), CapsError> {
        let own = caps::read(None, CapSet::Permitted)?;
        let within = |set: &CapsHashSet, limit: &CapsHashSet| -> CapsHashSet {
            set.intersection(limit).copied().collect()
        };
        let permitted = within(&self.permitted, &own);
        let inheritable = within(&self.inheritable, &own);
        // In this order each set is still within the one that bounds it when it is set.
        caps::set(None, CapSet::Effective, &within(&self.effective, &own))?;
        caps::set(None, CapSet::Inheritable, &inheritable)?;
        caps::set(None, CapSet::Permitted, &permitted)?;
        // An ambient capability is one that is permitted and inheritable.
        let ambient = within(&within(&self.ambient, &permitted), &inheritable);
        caps::clear(None, CapSet::Ambient)?;
        for capability in ambient {
            caps::raise(None, CapSet::Ambient, capability)?;
        }
        Ok(())
    }
}

/// The names of all capabilities that a spec can give, as they stand there.
pub fn capability_names() -> Vec<String> {
    let mut names: Vec<String> = caps::all().iter().map(Capability::to_string).collect();
    names.sort();
    names
}

fn set(spec: &Option<Capabilities>) -> Result<CapsHashSet, String> {
    spec.iter()
        .flatten()
        .map(|capability| {
            let name = capability.to_string();
            let name = match name.strip_prefix("CAP_") {
                Some(_) => name,
                None => format!("CAP_{name}"),
            };
            Capability::from_str(&name).map_err(|_| format!("{name} is not a capability"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_spec_has_one_of_the_kernel() {
        let all: Capabilities = caps::all()
            .into_iter()
            .map(|capability| capability.to_string()["CAP_".len()..].parse().unwrap())
            .collect();
        assert_eq!(all.len(), 41);
        let count = set(&Some(all)).unwrap().len();
        assert_eq!(count, 41);
    }

    #[test]
    fn effective_without_permitted_is_refused() {
        let mut spec = LinuxCapabilities::default();
        spec.set_permitted(None);
        assert!(CapabilitySets::new(Some(&spec)).is_err());
    }

    #[test]
    fn nothing_asked_is_nothing_given() {
        assert_eq!(
            CapabilitySets::new(None).unwrap(),
            CapabilitySets::default()
        );
    }
}
