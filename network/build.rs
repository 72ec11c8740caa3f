//! Compiles the eBPF programs and turns each into a table of instructions.
//!
//! The object file is read here and not at run time: what the loader needs of
//! it is a list of instructions and the places where a descriptor and an
//! interface's index go, so the process that loads it carries no ELF reader.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget};

const SOURCES: [&str; 2] = ["bpf/link.c", "bpf/loopback.c"];
/// The section prefixes that mark a program, and the kind that each stands for.
const KINDS: [(&str, &str); 2] = [("tc/", "SchedCls"), ("sk_lookup/", "SkLookup")];
/// The one relocation a program may have: a 64-bit immediate load.
const R_BPF_64_64: u32 = 1;
const INSTRUCTION: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut programs = String::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        let object = out.join("program.o");
        compile(source, &object)?;
        programs += &tables(source, &fs::read(&object)?)?;
    }
    fs::write(out.join("programs.rs"), programs)?;
    Ok(())
}

fn compile(source: &str, object: &Path) -> Result<(), Box<dyn Error>> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let status = Command::new(&clang)
        // v3 has 32-bit arithmetic and jumps; every kernel since 5.1 takes it.
        .args(["-target", "bpfel", "-mcpu=v3", "-O2", "-g0"])
        .args(["-Wall", "-Wextra", "-Werror", "-ffreestanding"])
        // Where multi-arch distributions keep <asm/types.h>.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(["-c", source, "-o"])
        .arg(object)
        .status()
        .map_err(|error| format!("running {clang}: {error}; install clang, or name it in CLANG"))?;
    if !status.success() {
        return Err(format!("{clang} could not compile {source} for BPF: {status}").into());
    }
    Ok(())
}

/// Rust source with one `Program` per section.
fn tables(source: &str, elf: &[u8]) -> Result<String, Box<dyn Error>> {
    let file = object::File::parse(elf)?;
    let mut tables = String::new();
    for section in file.sections() {
        let section_name = section.name()?;
        let program = KINDS
            .iter()
            .find_map(|(prefix, kind)| Some((section_name.strip_prefix(prefix)?, kind)));
        let Some((name, kind)) = program else {
            continue;
        };
        let data = section.data()?;
        let mut fixups = String::new();
        for (offset, relocation) in section.relocations() {
            let symbol = match (relocation.target(), relocation.flags()) {
                (
                    RelocationTarget::Symbol(index),
                    RelocationFlags::Elf {
                        r_type: R_BPF_64_64,
                    },
                ) => file.symbol_by_index(index)?.name()?,
                (target, flags) => {
                    return Err(format!(
                        "{source}: {name} has a relocation the loader does not know: {target:?} {flags:?}"
                    )
                    .into());
                }
            };
            let symbol = match symbol {
                "counters" | "listener" => "Map",
                "target" => "Target",
                other => {
                    return Err(format!("{source}: the loader does not provide `{other}`").into());
                }
            };
            write!(
                fixups,
                "({}, Symbol::{symbol}), ",
                usize::try_from(offset)? / INSTRUCTION
            )?;
        }
        let mut code = String::new();
        for instruction in data.chunks(INSTRUCTION) {
            write!(
                code,
                "0x{:016x}, ",
                u64::from_le_bytes(instruction.try_into()?)
            )?;
        }
        writeln!(
            tables,
            "/// `{name}` of `{source}`.\n\
             pub(crate) static {}: Program = Program {{\n\
             name: c\"joey_{name}\",\n\
             kind: Kind::{kind},\n\
             code: &[{code}],\n\
             fixups: &[{fixups}],\n\
             }};",
            name.to_uppercase()
        )?;
    }
    Ok(tables)
}
