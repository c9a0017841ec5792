#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::handshake::of_every_port(data));
