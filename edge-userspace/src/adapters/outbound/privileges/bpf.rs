//! Whether BPF maps can be used without capabilities.
#![allow(unsafe_code)]

use std::io;

/// `BPF_MAP_LOOKUP_ELEM` of `enum bpf_cmd`.
const LOOKUP: libc::c_int = 1;

/// What that command asks (`union bpf_attr`).
#[repr(C)]
struct Question {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Whether bpf(2) refuses threads without capabilities whatever they ask. Kernels before 5.19 do, where
/// `kernel.unprivileged_bpf_disabled` is set; later ones refuse only to make maps and to load programs.
pub(super) fn is_refused_without() -> bool {
    let attempt = || {
        super::forgo();
        is_refused()
    };
    // No thread can be had: then nothing is known, and what is held stays.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, attempt);
        thread.map_or(true, |thread| thread.join().unwrap_or(true))
    })
}

/// Looks into no map: who may ask is told that it is none.
fn is_refused() -> bool {
    let mut question = Question { map: u32::MAX, _padding: 0, key: 0, value: 0, flags: 0 };
    let size = size_of::<Question>();
    // SAFETY: the kernel reads `size` bytes of the question, and there is no map of that number.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP, &raw mut question, size) };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So do all kernels that take no capability for it.
    #[test]
    fn there_is_no_such_map() {
        std::thread::spawn(|| {
            super::super::forgo();
            let refused = is_refused();
            let why = io::Error::last_os_error().raw_os_error();
            assert!(refused == (why == Some(libc::EPERM)) && (refused || why == Some(libc::EBADF)), "{why:?}");
        })
        .join()
        .unwrap_or_else(|why| std::panic::resume_unwind(why));
    }
}
