//! Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909; GPT-2's bytes as letters), in Hugging Face's
//! `tokenizer.json`: read from a checkpoint, or learned from the instructions of a data set.
//!
//! Learning is our own so that it is a function of the texts alone; applying is the `tokenizers` crate's, which gives the
//! same numbers as its Python binding.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::json;
use tch::{Device, Tensor};

use crate::{PolicyError, hf};

/// Vocabularies of published models take up to 20 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What a learned tokeniser pads with; token 0.
const PAD: &str = "<|endoftext|>";

/// How Qwen2 cuts text into words before pairs are merged (its `tokenizer.json`).
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Text to tokens and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pad: i64,
}

impl Tokenizer {
    /// Reads `tokenizer.json`; the padding token is the one that `tokenizer_config.json` beside it names, otherwise the
    /// first of the usual names that the vocabulary has.
    ///
    /// # Errors
    /// [`PolicyError::File`] for a file that is not there, too long, or no tokeniser.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let fail = |detail: String| PolicyError::File { path: path.to_owned(), detail };
        let file = File::open(path).map_err(|e| fail(e.to_string()))?;
        let mut text = String::new();
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|e| fail(e.to_string()))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(fail(format!("longer than {MAX_FILE_BYTES} bytes")));
        }
        let config = path.with_file_name("tokenizer_config.json");
        let named = if config.exists() {
            let config: serde_json::Value = hf::read_json(&config)?;
            // A string, or an object with the string inside.
            let pad = config.get("pad_token").cloned().unwrap_or_default();
            pad.as_str().or_else(|| pad.get("content")?.as_str()).map(str::to_owned)
        } else {
            None
        };
        Self::parse(&text, named.as_deref()).map_err(fail)
    }

    fn parse(text: &str, pad: Option<&str>) -> Result<Self, String> {
        let mut inner: tokenizers::Tokenizer = text.parse().map_err(|e| format!("{e}"))?;
        // We pad and truncate ourselves.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        let usual = [PAD, "<pad>", "[PAD]", "<|pad|>", "</s>"];
        let pad = match pad {
            Some(name) => inner
                .token_to_id(name)
                .ok_or_else(|| format!("its padding token `{name}` is not in it"))?,
            None => usual.iter().find_map(|name| inner.token_to_id(name)).unwrap_or(0),
        };
        Ok(Self { inner, pad: i64::from(pad) })
    }

    /// Learns a vocabulary of at most `size` tokens (padding, 256 bytes, merges) from texts; repeated texts count once,
    /// and their order does not matter.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a `size` below 257 or above a million.
    pub fn train<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        size: usize,
    ) -> Result<Self, PolicyError> {
        let fail =
            |detail: String| PolicyError::Config { detail: format!("train a tokeniser: {detail}") };
        if !(257..=1_000_000).contains(&size) {
            return Err(fail(format!(
                "a vocabulary of {size} is not within 257 (padding and bytes) and 1000000"
            )));
        }
        let letters = byte_letters();
        let mut vocabulary = vec![PAD.to_owned()];
        vocabulary.extend(letters.iter().map(char::to_string));
        let bytes =
            Self::parse(&Self::json(&vocabulary, &[]).to_string(), Some(PAD)).map_err(&fail)?;

        let texts: BTreeSet<&str> = texts.into_iter().collect();
        let mut words: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
        for text in texts {
            let encoding = bytes.inner.encode(text, false).map_err(|e| fail(e.to_string()))?;
            let mut word = Vec::new();
            let mut last = None;
            for (&id, &number) in encoding.get_ids().iter().zip(encoding.get_word_ids()) {
                if number != last && !word.is_empty() {
                    *words.entry(std::mem::take(&mut word)).or_default() += 1;
                }
                last = number;
                word.push(id);
            }
            if !word.is_empty() {
                *words.entry(word).or_default() += 1;
            }
        }
        let merges = merges(words.into_iter().collect(), &mut vocabulary, size);
        Self::parse(&Self::json(&vocabulary, &merges).to_string(), Some(PAD)).map_err(fail)
    }

    fn json(vocabulary: &[String], merges: &[(String, String)]) -> serde_json::Value {
        let ids: BTreeMap<&str, usize> =
            vocabulary.iter().enumerate().map(|(i, token)| (token.as_str(), i)).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [{
                "id": 0, "content": PAD, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": ids, "merges": merges,
            },
        })
    }

    /// Writes `tokenizer.json` to `path`.
    ///
    /// # Errors
    /// [`PolicyError::File`] if it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PolicyError> {
        let fail = |detail: String| PolicyError::File { path: path.to_owned(), detail };
        let text = self.inner.to_string(true).map_err(|e| fail(e.to_string()))?;
        std::fs::write(path, text).map_err(|e| fail(e.to_string()))
    }

    /// Tokens in the vocabulary, special ones included; every token is below the highest one plus one.
    pub fn vocab_size(&self) -> i64 {
        let highest = self.inner.get_vocab(true).values().copied().max().unwrap_or(0);
        i64::from(highest) + 1
    }

    /// The padding token.
    pub fn pad(&self) -> i64 {
        self.pad
    }

    /// The tokens of `text`; special tokens in it are recognised.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if the tokeniser fails on it.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, PolicyError> {
        let encoding = self
            .inner
            .encode(text, true)
            .map_err(|e| PolicyError::Config { detail: format!("tokenise {text:?}: {e}") })?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// The text of `tokens`, special ones left out.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if the tokeniser fails on them.
    pub fn decode(&self, tokens: &[i64]) -> Result<String, PolicyError> {
        let ids: Vec<u32> = tokens.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.inner
            .decode(&ids, true)
            .map_err(|e| PolicyError::Config { detail: format!("read tokens {tokens:?}: {e}") })
    }

    /// `[B, L]` i64 tokens, cut after `length` or padded at the end, and `[B, L]` i64, 1 where a token is real.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if the tokeniser fails on a text.
    pub fn batch<S: AsRef<str>>(
        &self,
        texts: &[S],
        length: usize,
        device: Device,
    ) -> Result<(Tensor, Tensor), PolicyError> {
        let mut ids = Vec::with_capacity(texts.len() * length);
        let mut valid = Vec::with_capacity(texts.len() * length);
        for text in texts {
            let mut tokens = self.encode(text.as_ref())?;
            let real = tokens.len().min(length);
            tokens.resize(length, self.pad);
            ids.extend(tokens);
            valid.extend((0..length).map(|i| i64::from(i < real)));
        }
        let shape = [texts.len() as i64, length as i64];
        let tensor = |values: &[i64]| Tensor::from_slice(values).reshape(shape).to_device(device);
        Ok((tensor(&ids), tensor(&valid)))
    }
}

/// The letter that stands for each byte: itself where it is printable Latin-1, otherwise the next free one from U+0100
/// (GPT-2's `bytes_to_unicode`).
fn byte_letters() -> Vec<char> {
    let mut free = 0x100u32..;
    (0u8..=255)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => free.next().and_then(char::from_u32).unwrap_or('\u{fffd}'),
        })
        .collect()
}

/// Merges the most frequent pair, the lower one among equals, until the vocabulary has `size` tokens or no pair occurs
/// twice.
fn merges(
    mut words: Vec<(Vec<u32>, u64)>,
    vocabulary: &mut Vec<String>,
    size: usize,
) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    let mut known: BTreeSet<String> = vocabulary.iter().cloned().collect();
    while vocabulary.len() < size {
        let mut pairs: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *pairs.entry((pair[0], pair[1])).or_default() += count;
            }
        }
        let best = pairs
            .into_iter()
            .filter(|&(_, count)| count > 1)
            .max_by_key(|&(pair, count)| (count, std::cmp::Reverse(pair)));
        let Some(((a, b), _)) = best else { break };
        let (left, right) = (vocabulary[a as usize].clone(), vocabulary[b as usize].clone());
        let joined = format!("{left}{right}");
        // Two ways to one token: the second merge maps to the first's number.
        let id = if known.insert(joined.clone()) {
            vocabulary.push(joined);
            (vocabulary.len() - 1) as u32
        } else {
            vocabulary.iter().position(|token| *token == joined).unwrap_or_default() as u32
        };
        merges.push((left, right));
        for (word, _) in &mut words {
            let mut i = 0;
            while i + 1 < word.len() {
                if word[i] == a && word[i + 1] == b {
                    word[i] = id;
                    word.remove(i + 1);
                }
                i += 1;
            }
        }
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 4] = [
        "push the block",
        "push the block to the left",
        "place the bowl on the plate",
        "push the bowl",
    ];

    #[test]
    fn frequent_words_become_one_token_and_text_comes_back() {
        let tokenizer = Tokenizer::train(TEXTS, 300).unwrap();
        assert!(tokenizer.vocab_size() > 257 && tokenizer.vocab_size() <= 300);
        assert_eq!(tokenizer.encode("push the").unwrap().len(), 2);
        for text in TEXTS.iter().chain(&["naïve Ünïcode 🤖 \t x", "zzz 42"]) {
            let tokens = tokenizer.encode(text).unwrap();
            assert!(tokens.iter().all(|&t| t > 0 && t < tokenizer.vocab_size()));
            assert_eq!(tokenizer.decode(&tokens).unwrap(), **text);
        }
    }

    #[test]
    fn learning_depends_on_the_set_of_texts_alone() {
        let a = Tokenizer::train(TEXTS, 290).unwrap();
        let b = Tokenizer::train(TEXTS.iter().rev().copied().chain(TEXTS), 290).unwrap();
        assert_eq!(a.inner.to_string(false).unwrap(), b.inner.to_string(false).unwrap());
        let c = Tokenizer::train(["open the drawer"; 3], 290).unwrap();
        assert_eq!(c.vocab_size(), 257, "no pair of one text occurs twice");
        assert!(Tokenizer::train(TEXTS, 100).is_err());
    }

    #[test]
    fn a_saved_tokenizer_gives_the_same_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let tokenizer = Tokenizer::train(TEXTS, 300).unwrap();
        tokenizer.save(&path).unwrap();
        let again = Tokenizer::load(&path).unwrap();
        assert_eq!(again.pad(), 0);
        for text in TEXTS {
            assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        std::fs::write(&path, "{\"model\":").unwrap();
        assert!(Tokenizer::load(&path).unwrap_err().to_string().contains("tokenizer.json"));
    }

    #[test]
    fn batches_are_cut_and_padded_with_a_mask() {
        let tokenizer = Tokenizer::train(TEXTS, 300).unwrap();
        let (ids, valid) =
            tokenizer.batch(&["push", "push the block to the left", ""], 3, Device::Cpu).unwrap();
        assert_eq!(ids.size(), [3, 3]);
        let rows: Vec<i64> = Vec::try_from(valid.flatten(0, -1)).unwrap();
        assert_eq!(rows, [1, 0, 0, 1, 1, 1, 0, 0, 0]);
        assert_eq!(ids.int64_value(&[0, 2]), tokenizer.pad());
    }
}
