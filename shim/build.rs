//! Generates the CRI's messages that the shim reads, and keeps the shim small:
//! there is one for each pod.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto/cri.proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/cri.proto")
        .cargo_out_dir("proto")
        .run_from_script();
    // Half a megabyte of relocations that every process reads when it starts
    // becomes a few pages. Needs glibc 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
