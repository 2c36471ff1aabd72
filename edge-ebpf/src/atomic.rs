//! Atomic addition on map values. The BPF target's `core` has no read-modify-write atomics, the instruction set has.

use core::arch::asm;

/// Adds to `*value` and returns what it was. A full barrier between the CPUs.
///
/// # Safety
/// `value` points to an aligned `u64` in a map value.
#[inline(always)]
pub unsafe fn fetch_add(value: *mut u64, addend: u64) -> u64 {
    let mut operand = addend;
    // SAFETY: the caller's; BPF_ATOMIC | BPF_ADD | BPF_FETCH.
    unsafe {
        asm!("{operand} = atomic_fetch_add((u64 *)({value} + 0), {operand})",
             operand = inout(reg) operand, value = in(reg) value);
    }
    operand
}
