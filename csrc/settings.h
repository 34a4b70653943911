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

/// As a schema's argument has it: tensors by reference, all else by value.
template <class T>
using Argument = std::conditional_t<
    std::is_same_v<T, at::Tensor> || std::is_same_v<T, std::optional<at::Tensor>>, const T&, T>;

/// The operator `name`, which takes In and returns R.
template <class R, class... In>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<R(Argument<In>...)>();
}
/// Calls it through the dispatcher.
template <class R, class... In>
R call(const char* name, const In&... in) {
  return find_op<R, In...>(name).call(in...);
}
/// Calls one whose schema ends in the settings.
template <class R, class... In>
R call_op(const char* name, const LossOptions& options, const In&... in) {
  return std::apply([&](const auto&... settings) { return call<R>(name, in..., settings...); },
                    arguments_of(options));
}

}  // namespace gkd
