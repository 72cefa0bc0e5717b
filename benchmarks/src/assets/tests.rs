//! The download against a small hub on this machine, with the faults that a real one has.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does wrong, once each time it is asked for a file's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Sends this many bytes and hangs up.
    HangUpAfter(usize),
    /// Sends other contents of the same length.
    Corrupt,
    /// Answers with this status.
    Status(u16),
}

struct TestHub {
    address: String,
    faults: Arc<Mutex<BTreeMap<String, Vec<Fault>>>>,
    /// Ranges asked for, per file.
    ranges: Arc<Mutex<Vec<(String, String)>>>,
    served: Arc<AtomicUsize>,
}

impl TestHub {
    /// Serves `files`; the first is large (has a SHA-256), the others are git blobs, on pages of two.
    fn serve(files: Vec<(&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let hub = Self {
            address: address.clone(),
            faults: Arc::default(),
            ranges: Arc::default(),
            served: Arc::default(),
        };
        let (faults, ranges, served) =
            (Arc::clone(&hub.faults), Arc::clone(&hub.ranges), Arc::clone(&hub.served));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                answer(stream, &address, &files, &faults, &ranges, &served);
            }
        });
        hub
    }

    fn source(&self) -> AssetSource {
        AssetSource {
            endpoint: self.address.clone(),
            repo: "lerobot/libero-assets".into(),
            revision: "main".into(),
            retry_wait: Duration::from_millis(1),
        }
    }

    fn fail(&self, path: &str, faults: &[Fault]) {
        self.faults.lock().unwrap().insert(path.into(), faults.to_vec());
    }
}

fn digest<D: Digest>(hasher: D) -> String {
    hex(&hasher.finalize())
}

fn answer(
    mut stream: TcpStream,
    address: &str,
    files: &[(&'static str, Vec<u8>)],
    faults: &Mutex<BTreeMap<String, Vec<Fault>>>,
    ranges: &Mutex<Vec<(String, String)>>,
    served: &AtomicUsize,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    let mut range = None;
    for line in lines {
        let line = line.unwrap();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            range = value.trim_end_matches('-').parse::<usize>().ok();
        }
    }
    let url = request.split(' ').nth(1).unwrap().to_owned();
    let mut reply = |status: &str, headers: &str, body: &[u8], send: usize| {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
            body.len()
        );
        let _gone = stream.write_all(head.as_bytes());
        let _gone = stream.write_all(&body[..send.min(body.len())]);
    };
    let all = usize::MAX;
    if url.ends_with("/revision/main") {
        return reply("200 OK", "", format!(r#"{{"sha":"{COMMIT}"}}"#).as_bytes(), all);
    }
    if let Some((_, query)) = url.split_once(&format!("/tree/{COMMIT}?recursive=true")) {
        let start: usize = query.strip_prefix("&cursor=").map_or(0, |n| n.parse().unwrap());
        let mut page =
            vec![r#"{"type":"directory","path":"scenes","oid":"x","size":0}"#.to_owned()];
        for (i, (path, body)) in files.iter().enumerate().skip(start).take(2) {
            let mut blob = Sha1::new_with_prefix(format!("blob {}\0", body.len()));
            blob.update(body);
            let lfs = if i == 0 {
                format!(
                    r#","lfs":{{"oid":"{}","size":{},"pointerSize":130}}"#,
                    digest(Sha256::new_with_prefix(body)),
                    body.len()
                )
            } else {
                String::new()
            };
            // The size beside an `lfs` entry is the file's own on the hub; the pointer's would be as plausible.
            page.push(format!(
                r#"{{"type":"file","path":"{path}","oid":"{}","size":{}{lfs}}}"#,
                digest(blob),
                body.len()
            ));
        }
        let link = if start + 2 < files.len() {
            format!(
                "link: <{address}/api/datasets/lerobot/libero-assets/tree/{COMMIT}?recursive=true&cursor={}>; \
                 rel=\"next\"\r\n",
                start + 2
            )
        } else {
            String::new()
        };
        return reply("200 OK", &link, format!("[{}]", page.join(",")).as_bytes(), all);
    }
    let path = url.split_once(&format!("/resolve/{COMMIT}/")).map(|(_, p)| p.replace("%20", " "));
    let Some((path, body)) = path.and_then(|p| files.iter().find(|(name, _)| *name == p)) else {
        return reply("404 Not Found", "", b"", all);
    };
    served.fetch_add(1, Ordering::SeqCst);
    if let Some(from) = range {
        ranges.lock().unwrap().push(((*path).to_owned(), format!("{from}-")));
    }
    let fault = faults
        .lock()
        .unwrap()
        .get_mut(*path)
        .and_then(|list| if list.is_empty() { None } else { Some(list.remove(0)) });
    let from = range.unwrap_or(0);
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    match fault {
        None => reply(status, "", &body[from..], all),
        Some(Fault::HangUpAfter(n)) => reply(status, "", &body[from..], n),
        Some(Fault::Corrupt) => reply(status, "", &vec![b'?'; body.len() - from], all),
        Some(Fault::Status(code)) => reply(&format!("{code} Trouble"), "", b"", all),
    }
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let large: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    vec![
        ("textures/large.png", large),
        ("scenes/libero_tabletop_base_style.xml", b"<mujoco/>".to_vec()),
        ("stable hope/soup.xml", b"<soup/>".to_vec()),
        ("README.md", b"about".to_vec()),
        ("empty.txt", Vec::new()),
    ]
}

fn check(folder: &Path) {
    for (path, body) in files() {
        let there = folder.join(path);
        assert_eq!(there.exists(), path != "README.md", "{path}");
        if there.exists() {
            assert_eq!(fs::read(there).unwrap(), body, "{path}");
        }
    }
}

fn names_under(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn every_listed_file_arrives_whole_and_under_its_name() {
    let hub = TestHub::serve(files());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("assets");
    let mut last = None;
    let done = download_assets(&hub.source(), &folder, &mut |p| last = Some(p.clone())).unwrap();
    check(&folder);
    assert_eq!((done.commit.as_str(), done.files), (COMMIT, 4));
    let last = last.unwrap();
    assert_eq!((last.files, last.bytes), (last.files_total, last.bytes_total));
    assert_eq!(done.bytes, last.bytes);
    assert_eq!(names_under(dir.path()), ["assets"]);
    // A finished folder is not written to again.
    let again = download_assets(&hub.source(), &folder, &mut |_| {}).unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
}

#[test]
fn a_cut_connection_is_resumed_at_the_byte_where_it_was_cut() {
    let hub = TestHub::serve(files());
    hub.fail("textures/large.png", &[Fault::HangUpAfter(70_000), Fault::HangUpAfter(30_000)]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("assets");
    download_assets(&hub.source(), &folder, &mut |_| {}).unwrap();
    check(&folder);
    let ranges = hub.ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges.iter().all(|(path, from)| path == "textures/large.png" && from != "0-"));
}

#[test]
fn wrong_contents_are_thrown_away_and_asked_for_again() {
    let hub = TestHub::serve(files());
    // One large file (SHA-256) and one git blob (SHA-1) of the right length and the wrong contents.
    hub.fail("textures/large.png", &[Fault::Corrupt]);
    hub.fail("stable hope/soup.xml", &[Fault::Corrupt, Fault::Status(503)]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("assets");
    download_assets(&hub.source(), &folder, &mut |_| {}).unwrap();
    check(&folder);
}

#[test]
fn a_download_that_fails_leaves_no_folder_and_the_next_one_keeps_what_arrived() {
    let hub = TestHub::serve(files());
    hub.fail("stable hope/soup.xml", &[Fault::Corrupt; 5]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("assets");
    let error = download_assets(&hub.source(), &folder, &mut |_| {}).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("hash"), "{error}");
    assert!(!folder.exists());

    let before = hub.served.load(Ordering::SeqCst);
    download_assets(&hub.source(), &folder, &mut |_| {}).unwrap();
    check(&folder);
    // The two files before the broken one are not fetched again.
    assert_eq!(hub.served.load(Ordering::SeqCst) - before, 2);
}

#[test]
fn a_missing_repository_is_answered_at_once_and_with_the_remedy() {
    let hub = TestHub::serve(files());
    let source = AssetSource { revision: "nowhere".into(), ..hub.source() };
    let dir = tempfile::tempdir().unwrap();
    let error = download_assets(&source, &dir.path().join("assets"), &mut |_| {}).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("404") && message.contains("--assets"), "{message}");
}

#[test]
fn a_path_that_leads_out_of_the_folder_is_refused() {
    for path in ["../x", "/etc/passwd", "a/../../x", "", "a\\..\\x", "a\0b"] {
        assert!(safe_path(path).is_none(), "{path:?}");
    }
    assert_eq!(safe_path("a/b c.xml"), Some(PathBuf::from("a/b c.xml")));
    let hub = TestHub::serve(vec![("../escaped", b"x".to_vec())]);
    let dir = tempfile::tempdir().unwrap();
    let error =
        download_assets(&hub.source(), &dir.path().join("assets"), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
    assert!(!dir.path().join("escaped").exists());
}
