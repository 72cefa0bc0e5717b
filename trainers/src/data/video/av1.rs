//! AV1 through rav1d, a port of dav1d that keeps dav1d's C interface: the unsafe code of this crate is in this file.
//!
//! # Damaged streams
//! With one frame in flight, rav1d 1.1 panics on every frame that does not decode (`rav1d_submit_frame` looks into a frame
//! header that `rav1d_decode_frame_exit` took away), and inside an `extern "C"` function a panic aborts the process. With two
//! in flight its workers report the error instead; so there are two, on two threads. A worker that panics leaves the
//! decoder waiting: it runs on a thread of its own, of which nobody waits longer than [`PATIENCE`] for a frame.

#![expect(unsafe_code, reason = "rav1d 1.1 offers dav1d's C interface and no other")]

use std::ffi::c_int;
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::slice;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use rav1d::include::dav1d::data::Dav1dData;
use rav1d::include::dav1d::dav1d::{Dav1dContext, Dav1dLogger, Dav1dSettings};
use rav1d::include::dav1d::headers::{
    DAV1D_PIXEL_LAYOUT_I400, DAV1D_PIXEL_LAYOUT_I420, DAV1D_PIXEL_LAYOUT_I422,
};
use rav1d::include::dav1d::picture::Dav1dPicture;
use rav1d::src::lib::{
    dav1d_close, dav1d_data_create, dav1d_data_unref, dav1d_default_settings, dav1d_get_picture,
    dav1d_open, dav1d_picture_unref, dav1d_send_data,
};

use super::mp4::Sample;
use super::yuv::{Colour, Picture, Plane};
use super::{Decoded, MAX_PIXELS, Sink, Video};
use crate::data::DataError;

/// dav1d's `DAV1D_ERR(EAGAIN)`: not now, do the other half first.
const AGAIN: c_int = -11;

/// A frame takes milliseconds; a decoder that needs longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Not one: see the module.
const FRAMES_IN_FLIGHT: c_int = 2;
/// Pictures that wait between the decoder and its reader.
const AHEAD: usize = 2;

/// Decodes from sample `start` on until `sink` breaks.
///
/// # Errors
/// [`DataError::Broken`] for a sample that does not decode.
pub(super) fn decode(video: &Video, start: usize, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let file = video.file.try_clone().map_err(DataError::io("open", &video.path))?;
    // `av1C` is four bytes, then the sequence header, which need not be repeated in the stream (AV1-ISOBMFF, 2.3.3).
    let header = video.track.config.get(4..).unwrap_or_default().to_vec();
    let samples = video.track.samples[start..].to_vec();
    let (sender, receiver) = sync_channel(AHEAD);
    thread::Builder::new()
        .name("av1".to_owned())
        .stack_size(8 << 20)
        .spawn(move || {
            let result = run(&file, &header, &samples, start, &sender);
            // Nobody listens any more where the reader has all it wants.
            let _ = sender.send(result.map_or_else(Message::Failed, |()| Message::Done));
        })
        .map_err(DataError::io("start a decoder for", &video.path))?;
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok(Message::Picture(picture)) => {
                let flow = sink(Decoded::Yuv(picture.view())).map_err(|e| video.broken(e))?;
                if flow.is_break() {
                    return Ok(());
                }
            }
            Ok(Message::Done) => return Ok(()),
            Ok(Message::Failed(detail)) => return Err(video.broken(format!("AV1: {detail}"))),
            Err(RecvTimeoutError::Timeout) => {
                let secs = PATIENCE.as_secs();
                return Err(video.broken(format!("AV1: no frame came out for {secs} s")));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(video.broken("AV1: the decoder ended without a word"));
            }
        }
    }
}

/// What a decoder's thread says.
enum Message {
    Picture(Owned),
    Done,
    Failed(String),
}

/// The thread's work.
fn run(
    file: &File,
    header: &[u8],
    samples: &[Sample],
    first: usize,
    sender: &SyncSender<Message>,
) -> Result<(), String> {
    let mut decoder = Decoder::new()?;
    let mut buffer = Vec::new();
    for (i, sample) in samples.iter().enumerate() {
        buffer.clear();
        if i == 0 {
            buffer.extend_from_slice(header);
        }
        let header = buffer.len();
        buffer.resize(header + sample.size as usize, 0);
        file.read_exact_at(&mut buffer[header..], sample.offset).map_err(|e| e.to_string())?;
        let mut sink = |picture: Picture<'_>| {
            let sent = sender.send(Message::Picture(Owned::copy(&picture)));
            if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let sent = decoder.send(&buffer, &mut sink);
        if sent.map_err(|e| format!("frame {}: {e}", first + i))?.is_break() {
            return Ok(());
        }
    }
    let mut sink = |picture: Picture<'_>| {
        let sent = sender.send(Message::Picture(Owned::copy(&picture)));
        if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    // Asking without sending drains what is still in flight.
    decoder.take(&mut sink, &mut 0).map(drop)
}

/// A picture that outlives the decoder's.
struct Owned {
    width: usize,
    height: usize,
    planes: [(Vec<u8>, usize); 3],
    bits: u32,
    shift: (u32, u32),
    grey: bool,
    colour: Colour,
}

impl Owned {
    fn copy(picture: &Picture<'_>) -> Self {
        let planes = picture.planes.map(|p| (p.bytes.to_vec(), p.stride));
        let Picture { width, height, shift, grey, colour, .. } = *picture;
        Self { width, height, planes, bits: picture.planes[0].bits, shift, grey, colour }
    }

    fn view(&self) -> Picture<'_> {
        let plane = |i: usize| {
            let (bytes, stride) = &self.planes[i];
            Plane { bytes, stride: *stride, bits: self.bits }
        };
        let Self { width, height, shift, grey, colour, .. } = *self;
        Picture { width, height, planes: [plane(0), plane(1), plane(2)], shift, grey, colour }
    }
}

/// Receives pictures on the decoder's thread.
type Take<'a> = dyn FnMut(Picture<'_>) -> ControlFlow<()> + 'a;

struct Decoder(Option<Dav1dContext>);

impl Decoder {
    fn new() -> Result<Self, String> {
        let mut settings = MaybeUninit::<Dav1dSettings>::uninit();
        // SAFETY: the pointer is valid to write to, and the call initialises all of it.
        let mut settings = unsafe {
            dav1d_default_settings(NonNull::from(&mut settings).cast());
            settings.assume_init()
        };
        settings.n_threads = FRAMES_IN_FLIGHT;
        settings.max_frame_delay = FRAMES_IN_FLIGHT;
        settings.frame_size_limit = MAX_PIXELS as u32;
        // SAFETY: without a callback there is nothing that could be called wrongly. Errors are returned; nothing is printed.
        settings.logger = unsafe { Dav1dLogger::new(None, None) };
        let mut context = None;
        // SAFETY: both pointers are valid; `settings` is only read.
        let result = unsafe {
            dav1d_open(Some(NonNull::from(&mut context)), Some(NonNull::from(&mut settings)))
        };
        if result.0 < 0 || context.is_none() {
            return Err(format!("the AV1 decoder does not start (error {})", result.0));
        }
        Ok(Self(context))
    }

    /// Decodes one temporal unit.
    fn send(&mut self, bytes: &[u8], sink: &mut Take<'_>) -> Result<ControlFlow<()>, String> {
        if bytes.is_empty() {
            return Err("it is empty".to_owned());
        }
        let mut data = Data(Dav1dData::default());
        // SAFETY: `data.0` is valid to write to; on success the pointer is the start of `bytes.len()` bytes of its own.
        unsafe {
            let to = dav1d_data_create(Some(NonNull::from(&mut data.0)), bytes.len());
            if to.is_null() {
                return Err("out of memory".to_owned());
            }
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        loop {
            // SAFETY: the context is open until `self` is dropped; `data.0` is initialised, and what was consumed of it is
            // taken out of it by the call.
            let sent = unsafe { dav1d_send_data(self.0, Some(NonNull::from(&mut data.0))) };
            if sent.0 < 0 && sent.0 != AGAIN {
                return Err(format!("it does not decode (error {})", sent.0));
            }
            let mut pictures = 0;
            let flow = self.take(sink, &mut pictures)?;
            if flow.is_break() || data.0.sz == 0 {
                return Ok(flow);
            }
            if sent.0 == AGAIN && pictures == 0 {
                return Err("the decoder neither takes data nor gives a picture".to_owned());
            }
        }
    }

    /// Hands over the pictures that are ready.
    fn take(
        &mut self,
        sink: &mut Take<'_>,
        pictures: &mut usize,
    ) -> Result<ControlFlow<()>, String> {
        loop {
            let mut held = Held(Dav1dPicture::default());
            // SAFETY: the context is open; `held.0` is valid to write to.
            let result = unsafe { dav1d_get_picture(self.0, Some(NonNull::from(&mut held.0))) };
            match result.0 {
                AGAIN => return Ok(ControlFlow::Continue(())),
                n if n < 0 => return Err(format!("it does not decode (error {n})")),
                _ => {}
            }
            *pictures += 1;
            if sink(held.view()?).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the context is from `dav1d_open` and is closed once: the call leaves `None`.
        unsafe { dav1d_close(Some(NonNull::from(&mut self.0))) }
    }
}

/// Input that is freed even where it was not consumed.
struct Data(Dav1dData);

impl Drop for Data {
    fn drop(&mut self) {
        // SAFETY: initialised; the call leaves it empty.
        unsafe { dav1d_data_unref(Some(NonNull::from(&mut self.0))) }
    }
}

/// A picture that is given back.
struct Held(Dav1dPicture);

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: either default or from `dav1d_get_picture`; the call leaves it empty.
        unsafe { dav1d_picture_unref(Some(NonNull::from(&mut self.0))) }
    }
}

impl Held {
    fn view(&self) -> Result<Picture<'_>, String> {
        let p = &self.0.p;
        let (width, height) = (p.w as usize, p.h as usize);
        if p.w <= 0 || p.h <= 0 || width * height > MAX_PIXELS {
            return Err(format!("a frame of {} x {} pixels", p.w, p.h));
        }
        let grey = p.layout == DAV1D_PIXEL_LAYOUT_I400;
        let shift = match p.layout {
            DAV1D_PIXEL_LAYOUT_I420 => (1, 1),
            DAV1D_PIXEL_LAYOUT_I422 => (1, 0),
            _ => (0, 0),
        };
        let bits = p.bpc as u32;
        let wide = if bits == 8 { 1 } else { 2 };
        let plane = |i: usize| -> Result<Plane<'_>, String> {
            let across = if i == 0 { width } else { (width + (1 << shift.0) - 1) >> shift.0 };
            let down = if i == 0 { height } else { (height + (1 << shift.1) - 1) >> shift.1 };
            let stride = usize::try_from(self.0.stride[usize::from(i > 0)])
                .map_err(|_| "a picture stored upside down".to_owned())?;
            let data = self.0.data[i].ok_or("a picture without pixels")?;
            let len = (down - 1) * stride + across * wide;
            // SAFETY: dav1d's contract for a picture: rows of `stride` bytes, each with `across` samples, `down` rows; it
            // stays alive and unchanged while `self` does.
            let bytes = unsafe { slice::from_raw_parts(data.as_ptr().cast::<u8>(), len) };
            Ok(Plane { bytes, stride, bits })
        };
        let luma = plane(0)?;
        let planes = if grey { [luma; 3] } else { [luma, plane(1)?, plane(2)?] };
        let colour = match self.0.seq_hdr {
            // SAFETY: points into the picture's own reference to its sequence header.
            Some(header) => unsafe {
                let header = header.as_ref();
                Colour { full_range: header.color_range != 0, matrix: header.mtrx }
            },
            None => Colour::default(),
        };
        Ok(Picture { width, height, planes, shift, grey, colour })
    }
}
