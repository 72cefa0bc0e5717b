//! `train parity` on the published fixtures and on damaged copies of them.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]
#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use simloop_policies::optim::{AdamW, AdamWConfig, Step};
use simloop_policies::safetensors_io;
use simloop_policies::text::Qwen2;
use simloop_trainers::cli::parity::{ParityArgs, report};
use tch::{Kind, Tensor};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    parity: ParityArgs,
}

fn models() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/models");
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// Exit code, standard output, standard error.
fn parity(folder: &Path, more: &[&str]) -> (u8, String, String) {
    let arguments = ["parity", folder.to_str().unwrap()];
    let cli = Cli::parse_from(arguments.iter().chain(more));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = report(&cli.parity, &mut out, &mut err).unwrap();
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(to.join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
}

/// A copy of a fixture whose `io.safetensors` holds another tensor.
fn altered(from: &Path, name: &str, change: impl Fn(&Tensor)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(from, folder.path());
    let io = folder.path().join("io.safetensors");
    let mut tensors = safetensors_io::load(&io).unwrap();
    let tensor = tensors[name].copy();
    change(&tensor);
    tensors.insert(name.to_owned(), tensor);
    safetensors_io::save(&io, &tensors).unwrap();
    folder
}

#[test]
fn all_published_fixtures_meet_their_bars() {
    let Some(models) = models() else { return };
    let (code, out, err) = parity(&models, &[]);
    println!("{out}{err}");
    assert_eq!((code, err.as_str()), (0, ""));
    for name in
        ["siglip_tiny (SigLIP)", "qwen2_tiny (decoder)", "dp (Diff", "lora (LoRA)", "train (AdamW)"]
    {
        assert!(out.contains(name), "{name}");
    }
    assert!(out.contains("nf4: not covered"));
}

#[test]
fn a_number_that_is_off_misses_its_bar() {
    let Some(models) = models() else { return };
    let siglip = models.join("siglip_tiny");
    let off = altered(&siglip, "pooler_output", |t| drop(t.narrow(1, 3, 1).g_add_scalar_(2e-5)));
    let (code, out, _) = parity(off.path(), &[]);
    assert_eq!(code, 1, "{out}");
    assert!(out.lines().any(|l| l.contains("pooler_output") && l.ends_with("NO")), "{out}");
    let nan = altered(&siglip, "last_hidden_state", |t| drop(t.narrow(1, 0, 1).fill_(f64::NAN)));
    let (code, out, _) = parity(nan.path(), &[]);
    assert_eq!(code, 1, "{out}");
    assert!(out.lines().any(|l| l.contains("last_hidden") && l.ends_with("NO")), "{out}");
    let qwen = models.join("qwen2_tiny");
    let token = altered(&qwen, "generated", |t| drop(t.narrow(1, -1, 1).g_add_scalar_(1)));
    let (code, out, _) = parity(token.path(), &[]);
    assert_eq!(code, 1, "{out}");
}

#[test]
fn what_cannot_be_compared_is_named_with_exit_code_2() {
    let Some(models) = models() else { return };
    let root = tempfile::tempdir().unwrap();
    let case = |name: &str, from: &str, change: &dyn Fn(&Path)| {
        let folder = root.path().join(name);
        copy(&models.join(from), &folder);
        change(&folder);
        let (code, out, err) = parity(&folder, &[]);
        assert_eq!(code, 2, "{name}: {out}{err}");
        err
    };
    let remove =
        |file: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(file)).unwrap();
    let no_io = case("no_io", "siglip_tiny", &remove("io.safetensors"));
    assert!(no_io.contains("io.safetensors"), "{no_io}");
    let no_weights = case("no_weights", "qwen2_tiny", &remove("model.safetensors"));
    assert!(no_weights.contains("model.safetensors"), "{no_weights}");
    assert!(case("no_base", "lora", &|_| ()).contains("qwen2_tiny"));
    assert!(case("unknown", "nf4", &|_| ()).contains("unknown layout"));
    let pickled = case("pickled", "qwen2_tiny", &|folder| {
        let new = folder.join("pytorch_model.bin");
        std::fs::rename(folder.join("model.safetensors"), new).unwrap();
    });
    assert!(pickled.contains(".bin"), "{pickled}");
    let disguised = case("disguised", "siglip_tiny", &|folder| {
        std::fs::write(folder.join("model.safetensors"), b"PK\x03\x04 a zip of pickles").unwrap();
    });
    assert!(disguised.contains("zip"), "{disguised}");
    let short = case("short", "dp", &|folder| {
        let path = folder.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..1000]).unwrap();
    });
    assert!(short.contains("truncated"), "{short}");
    let heads = case("heads", "siglip_tiny", &|folder| {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 5");
        std::fs::write(&path, text).unwrap();
    });
    assert!(heads.contains("num_attention_heads"), "{heads}");

    let pt = root.path().join("model.pt");
    std::fs::write(&pt, b"PK\x03\x04").unwrap();
    let (code, _, err) = parity(&pt, &[]);
    assert!(code == 2 && err.contains(".pt"), "{err}");
    let (code, _, err) = parity(&root.path().join("absent"), &[]);
    assert!(code == 2 && err.contains("absent"), "{err}");
}

#[test]
fn adapters_find_a_base_that_lies_elsewhere() {
    let Some(models) = models() else { return };
    let folder = tempfile::tempdir().unwrap();
    copy(&models.join("lora"), folder.path());
    let base = models.join("qwen2_tiny");
    let (code, out, err) = parity(folder.path(), &["--base", base.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn updates_made_with_other_settings_are_found() {
    let Some(models) = models() else { return };
    tch::set_num_threads(2);
    let base = models.join("qwen2_tiny");
    let io = safetensors_io::load(&base.join("io.safetensors")).unwrap();
    let model = Qwen2::load(&base, tch::Device::Cpu, None).unwrap();
    let config = AdamWConfig {
        learning_rate: 5e-4,
        betas: [0.9, 0.999],
        weight_decay: 0.1,
        ..Default::default()
    };
    let mut optimizer = AdamW::new(model.params(), config).unwrap();
    let (ids, valid) = (&io["input_ids"], &io["attention_mask"]);
    let labels = ids.masked_fill(&valid.eq(0), -100);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let hidden = model.hidden(ids, Some(valid), true).unwrap();
        let loss = Qwen2::loss(&model.logits(&hidden), &labels);
        losses.push(loss.double_value(&[]));
        optimizer.accumulate(&loss).unwrap();
        match optimizer.step(5e-4) {
            Step::Applied { grad_norm } => norms.push(grad_norm),
            Step::Dropped { tensor } => panic!("{tensor}"),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let float = |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float);
    let mut tensors = BTreeMap::from([
        ("losses".to_owned(), float(&losses)),
        ("norms".to_owned(), float(&norms)),
    ]);
    let path = folder.path().join("io.safetensors");
    safetensors_io::save(&path, &tensors).unwrap();
    let base = base.to_str().unwrap();
    let (code, out, err) = parity(folder.path(), &["--base", base]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("lr 0.0005, betas [0.9, 0.999], decay 0.1"), "{out}");
    // Losses of no optimizer.
    tensors.insert("losses".to_owned(), float(&[losses[0], 9.0, 9.0, 9.0]));
    safetensors_io::save(&path, &tensors).unwrap();
    let (code, _, err) = parity(folder.path(), &["--base", base]);
    assert!(code == 2 && err.contains("none of the settings"), "{err}");
}
