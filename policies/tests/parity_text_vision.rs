//! SigLIP, Qwen2, Llama and peft adapters against numbers from transformers and peft.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]
#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use simloop_policies::nn::lora::{LoraConfig, is_adapter};
use simloop_policies::safetensors_io;
use simloop_policies::text::Qwen2;
use simloop_policies::text::qwen2::IGNORE;
use simloop_policies::vision::SiglipVision;
use tch::{Device, Kind, Tensor};

fn folder(name: &str) -> Option<PathBuf> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/models").join(name);
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    // The numbers were made with two threads.
    tch::set_num_threads(2);
    Some(path)
}

fn recorded(folder: &std::path::Path) -> BTreeMap<String, Tensor> {
    safetensors_io::load(&folder.join("io.safetensors")).unwrap()
}

fn check(what: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let d = (ours - theirs).abs().max().double_value(&[]);
    println!("{what}: {d:e}");
    assert!(d <= 1e-5, "{what}: {d:e}");
}

#[test]
fn siglip_answers_as_transformers_does() {
    let Some(folder) = folder("siglip_tiny") else { return };
    let io = recorded(&folder);
    let tower = SiglipVision::load(&folder, Device::Cpu).unwrap();
    let output = tower.forward(&io["pixel_values"]).unwrap();
    check("last_hidden_state", &output.last_hidden_state, &io["last_hidden_state"]);
    check("pooler_output", &output.pooler_output.unwrap(), &io["pooler_output"]);
}

#[test]
fn decoders_answer_learn_and_continue_as_transformers_does() {
    for name in ["qwen2_tiny", "llama_tiny"] {
        let Some(folder) = folder(name) else { return };
        let io = recorded(&folder);
        let model = Qwen2::load(&folder, Device::Cpu, None).unwrap();
        let (ids, valid) = (&io["input_ids"], &io["attention_mask"]);
        let hidden = model.hidden(ids, Some(valid), true).unwrap();
        check("hidden", &hidden, &io["hidden"]);
        let logits = model.logits(&hidden);
        check("logits", &logits, &io["logits"]);
        let loss = Qwen2::loss(&logits, &ids.masked_fill(&valid.eq(0), IGNORE));
        check("loss", &loss.reshape([1]), &io["loss"]);
        loss.backward();
        for (key, theirs) in
            io.range("grad.".to_owned()..).take_while(|(k, _)| k.starts_with("grad."))
        {
            check(key, &model.params().get(&key[5..]).unwrap().grad(), theirs);
        }
        // The slip that the second row's left padding is there to catch.
        let blind = model.hidden(ids, None, true).unwrap();
        assert!((blind - &hidden).abs().max().double_value(&[]) > 1e-3);

        let new = io["generated"].size()[1] - ids.size()[1];
        let prompt = ids.narrow(0, 0, 1);
        let all = model.greedy(&prompt, None, new, |logits, _| logits).unwrap();
        assert!(all.equal(&io["generated"]), "{all:?}");
        // Without a cache, token by token.
        let _guard = tch::no_grad_guard();
        let mut slow = prompt;
        for _ in 0..new {
            let hidden = model.hidden(&slow, None, true).unwrap();
            let next = model.logits(&hidden).select(1, -1).argmax(-1, true);
            slow = Tensor::cat(&[slow, next], 1);
        }
        assert!(slow.equal(&io["generated"]));
    }
}

#[test]
fn left_padding_does_not_change_what_is_generated() {
    let Some(folder) = folder("qwen2_tiny") else { return };
    let io = recorded(&folder);
    let model = Qwen2::load(&folder, Device::Cpu, None).unwrap();
    let (ids, valid) = (&io["input_ids"], &io["attention_mask"]);
    let both = model.greedy(ids, Some(valid), 8, |logits, _| logits).unwrap();
    let real = valid.get(1).nonzero().squeeze_dim(1);
    let alone = ids.get(1).index_select(0, &real).unsqueeze(0);
    let alone = model.greedy(&alone, None, 8, |logits, _| logits).unwrap();
    assert!(both.get(1).narrow(0, -8, 8).equal(&alone.get(0).narrow(0, -8, 8)));
    // A constraint is obeyed.
    let only = |logits: Tensor, step: i64| {
        let mask = logits.full_like(f64::NEG_INFINITY);
        let _ = mask.narrow(1, 7 + step, 1).fill_(0.0);
        logits + mask
    };
    let forced = model.greedy(ids, Some(valid), 3, only).unwrap();
    let tail: Vec<i64> = Vec::try_from(forced.get(0).narrow(0, -3, 3)).unwrap();
    assert_eq!(tail, [7, 8, 9]);
}

#[test]
fn adapters_answer_and_learn_as_peft_does() {
    let (Some(folder), Some(base)) = (folder("lora"), folder("qwen2_tiny")) else { return };
    let (config, name) = LoraConfig::from_peft(&folder.join("adapter_config.json")).unwrap();
    assert_eq!(name.as_deref(), Some("qwen2_tiny"));
    let model = Qwen2::load(&base, Device::Cpu, Some(config)).unwrap();
    let adapters = safetensors_io::load(&folder.join("adapter_model.safetensors")).unwrap();
    model.params().load_adapters(&adapters).unwrap();
    model.params().set_trainable(is_adapter);
    let (io, inputs) = (recorded(&folder), recorded(&base));
    let (ids, valid) = (&inputs["input_ids"], &inputs["attention_mask"]);
    for checkpointing in [false, true] {
        model.params().set_checkpointing(checkpointing);
        for (_, mut tensor) in model.params().trainable() {
            tensor.zero_grad();
        }
        let logits = model.logits(&model.hidden(ids, Some(valid), true).unwrap());
        check("logits", &logits, &io["logits"]);
        let loss = Qwen2::loss(&logits, &ids.masked_fill(&valid.eq(0), IGNORE));
        check("loss", &loss.reshape([1]), &io["loss"]);
        model.params().backward(&loss);
        let mut count = 0;
        for (key, theirs) in io.range("g.".to_owned()..).take_while(|(k, _)| k.starts_with("g.")) {
            check(key, &model.params().get(&key[2..]).unwrap().grad(), theirs);
            count += 1;
        }
        assert_eq!(count, 12);
    }
    // Folded into the weights it is the same function; without it, another.
    let _guard = tch::no_grad_guard();
    let plain =
        Qwen2::from_weights(model.config().clone(), &model.params().merged(), Device::Cpu, None)
            .unwrap();
    check("merged", &plain.logits(&plain.hidden(ids, Some(valid), true).unwrap()), &io["logits"]);
    let bare = (&inputs["logits"] - &io["logits"]).abs().max().double_value(&[]);
    assert!(bare > 1e-3, "{bare}");
    // Real weights as a half-precision checkpoint: read, and near.
    let half = plain
        .params()
        .snapshot()
        .into_iter()
        .map(|(n, t)| (n, t.to_kind(Kind::BFloat16)))
        .collect();
    let half = Qwen2::from_weights(model.config().clone(), &half, Device::Cpu, None).unwrap();
    let near = half.logits(&half.hidden(ids, Some(valid), true).unwrap());
    assert!((near - &io["logits"]).abs().max().double_value(&[]) < 0.2);
}

#[test]
fn a_config_that_lies_about_heads_is_named_and_not_computed_with() {
    let Some(folder) = folder("qwen2_tiny") else { return };
    let copy = tempfile::tempdir().unwrap();
    let weights = folder.join("model.safetensors");
    std::fs::copy(&weights, copy.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    for (from, to, word) in [
        (r#""num_attention_heads": 4"#, r#""num_attention_heads": 3"#, "num_key_value_heads"),
        (r#""num_key_value_heads": 2"#, r#""num_key_value_heads": 4"#, "k_proj"),
        (r#""num_hidden_layers": 3"#, r#""num_hidden_layers": 4"#, "layers.3"),
        (r#""vocab_size": 407"#, r#""vocab_size": 408"#, "embed_tokens"),
        (r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#, "lm_head"),
    ] {
        assert!(config.contains(from), "{from}");
        std::fs::write(copy.path().join("config.json"), config.replace(from, to)).unwrap();
        let error = Qwen2::load(copy.path(), Device::Cpu, None).unwrap_err().to_string();
        assert!(error.contains(word), "{to}: {error}");
    }
    std::fs::write(copy.path().join("config.json"), &config).unwrap();
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(copy.path().join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    let error = Qwen2::load(copy.path(), Device::Cpu, None).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("truncated"), "{error}");
}
