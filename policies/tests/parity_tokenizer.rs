//! Tokens against those of the Python binding that made the fixtures.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]
#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

use std::path::PathBuf;

use simloop_policies::safetensors_io;
use simloop_policies::text::Tokenizer;

fn folder(name: &str) -> Option<PathBuf> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/models").join(name);
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn recorded(folder: &std::path::Path) -> Vec<i64> {
    let io = safetensors_io::load(&folder.join("io.safetensors")).unwrap();
    Vec::try_from(io["input_ids"].flatten(0, -1)).unwrap()
}

#[test]
fn an_expanded_prompt_gives_the_recorded_tokens() {
    let Some(folder) = folder("smolvlm_tiny") else { return };
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json")).unwrap();
    let text = std::fs::read_to_string(folder.join("expanded.txt")).unwrap();
    assert_eq!(tokenizer.encode(&text).unwrap(), recorded(&folder));
}

#[test]
fn a_chat_prompt_gives_the_recorded_tokens_between_its_images() {
    let Some(folder) = folder("qwen25vl_tiny") else { return };
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json")).unwrap();
    let text = std::fs::read_to_string(folder.join("prompt.txt")).unwrap();
    let image = tokenizer.encode("<|image_pad|>").unwrap();
    assert_eq!(image.len(), 1);
    // The processor repeats the image token once per merged patch.
    let without = |ids: Vec<i64>| ids.into_iter().filter(|id| *id != image[0]).collect::<Vec<_>>();
    let ours = without(tokenizer.encode(&text).unwrap());
    assert!(ours.len() > 50);
    assert_eq!(ours, without(recorded(&folder)));
}

#[test]
fn the_qwen_vocabulary_pads_with_its_named_token_and_reads_back() {
    let Some(folder) = folder("tok_qwen") else { return };
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json")).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.pad()), (407, 400));
    let text = "pick up the black bowl 512, it's  naïve\n\n\tyes";
    let tokens = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    // Digits are single tokens.
    assert_eq!(tokenizer.encode("512").unwrap().len(), 3);
}
