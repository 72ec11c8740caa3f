//! Generates messages and ttrpc stubs from guest.proto and shim.proto.
fn main() {
    println!("cargo::rerun-if-changed=guest.proto");
    println!("cargo::rerun-if-changed=shim.proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["guest.proto", "shim.proto"])
        .include(".")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()
        .expect("guest.proto and shim.proto compile");

    // `include!` takes no inner attributes, so the modules in lib.rs carry them.
    for name in ["guest.rs", "guest_ttrpc.rs", "shim.rs", "shim_ttrpc.rs"] {
        let path = std::path::Path::new(&out).join(name);
        let text = std::fs::read_to_string(&path).expect("generated file");
        let kept: String = text
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .flat_map(|line| [line, "\n"])
            .collect();
        std::fs::write(&path, kept).expect("generated file is ours to write");
    }
}
