// The settings of a call as operator arguments: gkd::LossOptions is the only list of them in C++,
// and an operator's schema ends in the same list (GKD_SETTINGS in library.cpp).
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "gkd/options.h"
#include "math/cut.h"
#include "math/loss.h"

namespace gkd {

/// In the order of LossOptions and of the schemas. The strings are views of `o`.
inline auto arguments_of(const LossOptions& o) {
  return std::make_tuple(o.threshold, o.group_size, o.group_temperature, o.temperature,
                         o.primary_weight, o.binary_weight, o.secondary_weight, o.coupled,
                         std::string_view(o.rank_by), std::string_view(o.reduction), o.ignore_index,
                         std::string_view(o.method));
}
using SettingArguments = decltype(arguments_of(std::declval<const LossOptions&>()));

inline Selection selection_of(const LossOptions& o) {
  return {o.threshold.value_or(LossOptions::kDefaultThreshold),
          o.group_size.value_or(-1),
          o.rank_by == "student",
          o.method == "sort",
          o.group_temperature.value_or(0),
          o.threshold && o.group_size};
}

inline Weights weights_of(const LossOptions& o) {
  return {o.temperature, o.primary_weight, o.binary_weight, o.secondary_weight, o.coupled};
}

/// F(options, inputs...) as the kernel of an operator whose schema is (inputs..., *, settings...).
template <auto F, class Settings = SettingArguments>
struct SettingsOp;
template <class R, class... In, R (*F)(const LossOptions&, In...), class... S>
struct SettingsOp<F, std::tuple<S...>> {
  static R call(In... in, S... settings) { return F(LossOptions{owned(settings)...}, in...); }

 private:
  static std::string owned(std::string_view s) { return std::string(s); }
  template <class T>
  static std::enable_if_t<!std::is_convertible_v<T, std::string_view>, T> owned(T value) {
    return value;
  }
};

/// Calls the operator `name` of such a schema through the dispatcher. R and In are the schema's
/// types.
template <class R, class... In>
R call_op(const char* name, const LossOptions& options, In... in) {
  return std::apply(
      [&](const auto&... settings) {
        return c10::Dispatcher::singleton()
            .findSchemaOrThrow(name, "")
            .typed<R(In..., std::decay_t<decltype(settings)>...)>()
            .call(in..., settings...);
      },
      arguments_of(options));
}

}  // namespace gkd
