//! Compiles the eBPF programs and turns each into a table of instructions.
//!
//! The object file is read here and not at run time: what the loader needs of
//! it is a list of instructions and the two places where a descriptor and an
//! interface's index go, so the process that loads it carries no ELF reader.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget};

const SOURCE: &str = "bpf/link.c";
/// The section prefix that marks a program.
const PROGRAM: &str = "tc/";
/// The one relocation a program may have: a 64-bit immediate load.
const R_BPF_64_64: u32 = 1;
const INSTRUCTION: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let object = out.join("link.o");
    compile(&object)?;
    fs::write(out.join("programs.rs"), tables(&fs::read(&object)?)?)?;
    Ok(())
}

fn compile(object: &Path) -> Result<(), Box<dyn Error>> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let status = Command::new(&clang)
        // v3 has 32-bit arithmetic and jumps; every kernel since 5.1 takes it.
        .args(["-target", "bpfel", "-mcpu=v3", "-O2", "-g0"])
        .args(["-Wall", "-Wextra", "-Werror", "-ffreestanding"])
        // Where multi-arch distributions keep <asm/types.h>.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(["-c", SOURCE, "-o"])
        .arg(object)
        .status()
        .map_err(|error| format!("running {clang}: {error}; install clang, or name it in CLANG"))?;
    if !status.success() {
        return Err(format!("{clang} could not compile {SOURCE} for BPF: {status}").into());
    }
    Ok(())
}

/// Rust source with one `Program` per section.
fn tables(elf: &[u8]) -> Result<String, Box<dyn Error>> {
    let file = object::File::parse(elf)?;
    let mut source = String::new();
    for section in file.sections() {
        let Some(name) = section.name()?.strip_prefix(PROGRAM) else {
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
                        "{SOURCE}: {name} has a relocation the loader does not know: {target:?} {flags:?}"
                    )
                    .into());
                }
            };
            let symbol = match symbol {
                "counters" => "Counters",
                "target" => "Target",
                other => {
                    return Err(format!("{SOURCE}: the loader does not provide `{other}`").into());
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
            source,
            "/// `{name}` of `{SOURCE}`.\n\
             pub(crate) static {}: Program = Program {{\n\
             name: c\"joey_{name}\",\n\
             code: &[{code}],\n\
             fixups: &[{fixups}],\n\
             }};",
            name.to_uppercase()
        )?;
    }
    Ok(source)
}
