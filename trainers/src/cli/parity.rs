//! `train parity <folder>`: our models against recorded numbers of the reference implementations.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use simloop_policies::safetensors_io;

use crate::parity::{Kind, Row, compare, kind_of};

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct ParityArgs {
    /// A checkpoint with its `io.safetensors`, or a folder of such folders.
    folder: PathBuf,
    /// The model under adapters or updates, where it does not lie beside the folder.
    #[arg(long, value_name = "FOLDER")]
    base: Option<PathBuf>,
    /// Threads inside one operation. libtorch sums in another order with another number; the published fixtures were made
    /// with two.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(i32).range(1..=1024))]
    threads: i32,
}

/// Files that make a folder one checkpoint and not a folder of them.
const MARKS: [&str; 5] = [
    "config.json",
    "adapter_config.json",
    "model.safetensors",
    "io.safetensors",
    "model.safetensors.index.json",
];

/// Compares and prints. Exit code 0: all bars met; 1: one is not; 2: something could not be compared.
///
/// # Errors
/// Only if the table cannot be printed.
pub fn run(args: &ParityArgs) -> anyhow::Result<ExitCode> {
    let code = report(args, &mut io::stdout().lock(), &mut io::stderr())?;
    Ok(ExitCode::from(code))
}

/// Compares and writes one row per quantity to `out`, what could not be compared to `err`. Returns the exit code.
///
/// # Errors
/// Only if the table cannot be written.
pub fn report(args: &ParityArgs, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    tch::set_num_threads(args.threads);
    let folders = match folders(&args.folder) {
        Ok(folders) => folders,
        Err(message) => {
            writeln!(err, "error: {message}")?;
            return Ok(2);
        }
    };
    let single = folders == [args.folder.clone()];
    let (mut compared, mut missed, mut failed) = (0, 0, 0);
    for folder in &folders {
        let name = folder.display();
        match kind_of(folder) {
            Ok(Some(kind)) => match compare(folder, kind, args.base.as_deref()) {
                Ok(rows) => {
                    compared += 1;
                    missed += rows.iter().filter(|row| !row.is_met()).count();
                    table(out, folder, kind, &rows)?;
                }
                Err(error) => {
                    failed += 1;
                    writeln!(err, "error: compare `{name}`: {error}")?;
                }
            },
            Ok(None) if single => {
                failed += 1;
                writeln!(
                    err,
                    "error: compare `{name}`: unknown layout; known are SigLIP, Qwen2, Llama, Diffusion Policy, peft \
                     adapters and recorded updates, each with io.safetensors"
                )?;
            }
            Ok(None) => writeln!(out, "{name}: not covered\n")?,
            Err(error) => {
                failed += 1;
                writeln!(err, "error: compare `{name}`: {error}")?;
            }
        }
    }
    if compared == 0 && failed == 0 {
        failed += 1;
        writeln!(err, "error: `{}` holds nothing that can be compared", args.folder.display())?;
    }
    writeln!(out, "{compared} compared, {missed} bars missed, {failed} failed")?;
    Ok(if failed > 0 { 2 } else { u8::from(missed > 0) })
}

/// The folder itself, or the folders in it.
fn folders(path: &Path) -> Result<Vec<PathBuf>, String> {
    if path.is_file() {
        safetensors_io::refuse_pickles(path).map_err(|e| e.to_string())?;
        return Err(format!("`{}` is a file; give the folder that it lies in", path.display()));
    }
    let wrong = |e: io::Error| format!("read `{}`: {e}", path.display());
    let mut entries =
        std::fs::read_dir(path).map_err(wrong)?.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    entries.sort_by_key(std::fs::DirEntry::path);
    let pickle = entries
        .iter()
        .map(std::fs::DirEntry::path)
        .find_map(|p| (p.is_file()).then(|| safetensors_io::refuse_pickles(&p).err()).flatten());
    if MARKS.iter().any(|mark| path.join(mark).exists()) {
        return Ok(vec![path.to_owned()]);
    }
    if let Some(error) = pickle {
        return Err(error.to_string());
    }
    let found: Vec<PathBuf> =
        entries.iter().map(std::fs::DirEntry::path).filter(|p| p.is_dir()).collect();
    if found.is_empty() { Ok(vec![path.to_owned()]) } else { Ok(found) }
}

fn table(out: &mut impl Write, folder: &Path, kind: Kind, rows: &[Row]) -> io::Result<()> {
    let kind = match kind {
        Kind::Siglip => "SigLIP",
        Kind::Decoder => "decoder",
        Kind::Diffusion => "Diffusion Policy U-Net",
        Kind::Lora => "LoRA",
        Kind::AdamW => "AdamW",
    };
    writeln!(out, "{} ({kind})", folder.display())?;
    let width = rows.iter().map(|row| row.quantity.chars().count()).max().unwrap_or(0).max(8);
    writeln!(out, "  {:width$}  {:>12}  {:>8}  ok", "quantity", "max abs diff", "bar")?;
    for row in rows {
        let bar = row.bar.map_or_else(|| "-".to_owned(), |bar| format!("{bar:.0e}"));
        let ok = match row.bar {
            None => "-",
            Some(_) if row.is_met() => "yes",
            Some(_) => "NO",
        };
        writeln!(out, "  {:width$}  {:>12.1e}  {bar:>8}  {ok}", row.quantity, row.difference)?;
    }
    writeln!(out)
}
