//! Enums whose variants have names, on the wire or as metric labels. Each enum is one table.

/// Declares an enum with `ALL`, every variant in order, and with a method that names a variant.
macro_rules! named_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident by $(#[$method_meta:meta])* $method:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)*
        }
    ) => {
        $(#[$meta])*
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl $name {
            /// Every variant, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            $(#[$method_meta])*
            pub const fn $method(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

pub(crate) use named_enum;
