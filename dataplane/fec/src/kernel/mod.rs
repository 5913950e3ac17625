//! The one operation that takes time: a matrix times the symbols of a block, by what the CPU has for it.
//!
//! Each kernel is some `Lanes`, the loop around them (`tile`) is the same for all. The program is compiled for any
//! CPU of its architecture; which kernel runs is decided once for each codec.

mod scalar;
mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod gfni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod ssse3;

use crate::matrix::Columns;
use crate::shape::SYMBOL_LEN_MIN;

/// A way to multiply that this CPU is capable of: values are made by [`Kernel::all`] and [`Kernel::best`] alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    #[cfg(target_arch = "x86_64")]
    GfniAvx512,
    #[cfg(target_arch = "x86_64")]
    GfniAvx2,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Ssse3,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Scalar,
}

impl Instructions {
    /// The fastest first.
    const ALL: &'static [Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::GfniAvx512,
        #[cfg(target_arch = "x86_64")]
        Self::GfniAvx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Ssse3,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        Self::Scalar,
    ];

    fn are_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx512 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx2 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Ssse3 => is_x86_feature_detected!("ssse3"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Scalar => true,
        }
    }
}

impl Kernel {
    /// All that this CPU is capable of, the fastest first; the last is portable and always there.
    pub fn all() -> impl Iterator<Item = Self> {
        Instructions::ALL.iter().copied().filter(|instructions| instructions.are_here()).map(Self)
    }

    /// The fastest of them.
    #[must_use]
    pub fn best() -> Self {
        Self::all().next().unwrap_or(Self(Instructions::Scalar))
    }

    /// The instructions it is made of, for benchmarks and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::GfniAvx512 => "gfni-avx512",
            #[cfg(target_arch = "x86_64")]
            Instructions::GfniAvx2 => "gfni-avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Ssse3 => "ssse3",
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => "neon",
            Instructions::Scalar => "scalar",
        }
    }

    /// Writes `matrix` times `sources` to `outputs`: one row of the matrix for each output, one column for each source.
    ///
    /// All buffers have the same length, at least [`SYMBOL_LEN_MIN`], and the matrix has these rows and columns. It is
    /// a bug if not, and asserted, because the kernels lean on it.
    pub(crate) fn multiply(self, matrix: Columns<'_>, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let (Some(first), rows) = (outputs.first(), outputs.len()) else { return };
        let len = first.len();
        assert!(len >= SYMBOL_LEN_MIN, "{len} bytes are shorter than any symbol");
        assert!(sources.iter().all(|source| source.len() == len), "sources have other lengths than outputs");
        assert!(outputs.iter().all(|output| output.len() == len), "outputs have different lengths");
        let last = sources.len().saturating_sub(1) * matrix.stride + rows;
        assert!(rows <= matrix.stride && last <= matrix.bytes.len(), "the matrix is too small");
        let job = tile::Job { matrix, sources, len };
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has GFNI and AVX-512: a `Kernel` is only made when it has. The lengths are asserted above.
            Instructions::GfniAvx512 => unsafe { gfni::multiply_avx512(job, outputs) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above, with GFNI and AVX2.
            Instructions::GfniAvx2 => unsafe { gfni::multiply_avx2(job, outputs) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above, with AVX2.
            Instructions::Avx2 => unsafe { avx2::multiply(job, outputs) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above, with SSSE3.
            Instructions::Ssse3 => unsafe { ssse3::multiply(job, outputs) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above, with NEON.
            Instructions::Neon => unsafe { neon::multiply(job, outputs) },
            // SAFETY: any CPU will do. The lengths are asserted above.
            Instructions::Scalar => unsafe { scalar::multiply(job, outputs) },
        }
    }
}

#[cfg(test)]
mod tests;
