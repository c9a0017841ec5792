#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::frames::of_an_upstream(data));
