// GKD_API: the symbols libgkd.so exports.
#pragma once

#define GKD_API __attribute__((visibility("default")))
