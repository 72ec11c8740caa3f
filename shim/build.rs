//! Keeps the shim small: there is one for each pod.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Half a megabyte of relocations that every process reads when it starts
    // becomes a few pages. Needs glibc 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
