#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::websocket::in_any_portions(data));
