//! Cgroups that systemd makes: transient scopes.

mod name;

pub(crate) use name::ScopeName;
