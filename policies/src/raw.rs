//! A CPU tensor's memory as a slice, and loops compiled for the widest registers that the processor has.

use tch::{Device, Kind, Tensor};

/// The numbers of a contiguous f32 tensor on the CPU, row by row.
///
/// Other handles of the same memory must not be written through while the slice lives.
pub(crate) fn floats(x: &Tensor) -> &[f32] {
    let n = expect_plain(x);
    if n == 0 {
        return &[]; // its pointer is null
    }
    #[expect(unsafe_code, reason = "tch lends a tensor's memory by pointer only")]
    // SAFETY: contiguous f32 of `n` numbers on the CPU (checked above), kept alive by its borrow; libtorch runs nothing on it
    // while this crate's loops do.
    unsafe {
        std::slice::from_raw_parts(x.data_ptr().cast::<f32>(), n)
    }
}

/// The same, to be written.
///
/// Other handles of the same memory must not be used while the slice lives.
pub(crate) fn floats_mut(x: &mut Tensor) -> &mut [f32] {
    let n = expect_plain(x);
    if n == 0 {
        return &mut []; // its pointer is null
    }
    #[expect(unsafe_code, reason = "tch lends a tensor's memory by pointer only")]
    // SAFETY: as above; callers pass tensors whose memory nobody else uses meanwhile.
    unsafe {
        std::slice::from_raw_parts_mut(x.data_ptr().cast::<f32>(), n)
    }
}

fn expect_plain(x: &Tensor) -> usize {
    assert!(
        x.device() == Device::Cpu && x.kind() == Kind::Float && x.is_contiguous(),
        "memory is lent of contiguous f32 on the CPU"
    );
    x.numel()
}

/// Compiles a function for AVX-512, AVX2 and the rest, and picks at run time. No product is fused with a sum, so elements that
/// do not depend on each other are the same bits everywhere.
macro_rules! widest {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $kind),*) {
            #[inline(always)]
            fn each($($arg: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $kind),*) {
                each($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $kind),*) {
                each($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx512f") {
                #[expect(unsafe_code, reason = "compiled for AVX-512, for processors that have it")]
                // SAFETY: the feature was detected.
                return unsafe { avx512($($arg),*) };
            }
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                #[expect(unsafe_code, reason = "compiled for AVX2, for processors that have it")]
                // SAFETY: the feature was detected.
                return unsafe { avx2($($arg),*) };
            }
            each($($arg),*);
        }
    };
}
pub(crate) use widest;
