// The settings of a call as operator arguments: the structs of gkd/options.h are the only lists of
// them in C++, and an operator's schema ends in the same lists (GKD_SETTINGS and GKD_TRAINING in
// library.cpp).
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

/// All settings of a call. Of gkd::loss, whose training settings do nothing.
struct CallOptions : LossOptions {
  TrainingOptions training{/*cross_entropy_weight=*/0};
};

/// Whether the settings of training_loss leave the loss as it is.
inline bool is_plain(const TrainingOptions& o) {
  return o.cross_entropy_weight == 0 && o.distillation_weight == 1 && o.scale == 1 &&
         o.margin == 0 && !o.margins && !o.distillation_factor;
}

/// In the order of LossOptions and of the schemas. The strings are views of `o`.
inline auto arguments_of(const LossOptions& o) {
  return std::make_tuple(o.threshold, o.group_size, o.group_temperature, o.temperature,
                         o.primary_weight, o.binary_weight, o.secondary_weight, o.coupled,
                         std::string_view(o.rank_by), std::string_view(o.reduction), o.ignore_index,
                         std::string_view(o.method));
}
/// Its tensors are arguments of their own.
inline auto arguments_of(const TrainingOptions& o) {
  return std::make_tuple(o.cross_entropy_weight, o.distillation_weight, o.scale, o.margin,
                         o.distill_margin);
}
inline auto arguments_of(const CallOptions& o) {
  return std::tuple_cat(arguments_of(static_cast<const LossOptions&>(o)), arguments_of(o.training));
}
template <class Options>
using ArgumentsOf = decltype(arguments_of(std::declval<const Options&>()));

/// The inverse of arguments_of().
template <class Options>
struct OptionsFrom {
  template <class... S>
  static Options make(const S&... settings) {
    return {owned(settings)...};
  }

 private:
  static std::string owned(std::string_view s) { return std::string(s); }
  template <class T>
  static std::enable_if_t<!std::is_convertible_v<T, std::string_view>, T> owned(T value) {
    return value;
  }
};
template <>
struct OptionsFrom<CallOptions> {
  template <class... S>
  static CallOptions make(const S&... settings) {
    const auto all = std::forward_as_tuple(settings...);
    constexpr std::size_t kLoss = std::tuple_size_v<ArgumentsOf<LossOptions>>;
    constexpr std::size_t kTraining = std::tuple_size_v<ArgumentsOf<TrainingOptions>>;
    return {part<LossOptions, 0>(all, std::make_index_sequence<kLoss>()),
            part<TrainingOptions, kLoss>(all, std::make_index_sequence<kTraining>())};
  }

 private:
  template <class Options, std::size_t first, class All, std::size_t... k>
  static Options part(const All& all, std::index_sequence<k...>) {
    return OptionsFrom<Options>::make(std::get<first + k>(all)...);
  }
};

inline Selection selection_of(const CallOptions& o) {
  return {o.threshold.value_or(LossOptions::kDefaultThreshold),
          o.group_size.value_or(-1),
          o.rank_by == "student",
          o.method == "sort",
          o.group_temperature.value_or(0) / o.training.scale,
          o.threshold && o.group_size};
}

/// Without the distillation factor, which is in a tensor.
inline Weights weights_of(const CallOptions& o) {
  return {o.temperature,
          o.primary_weight,
          o.binary_weight,
          o.secondary_weight,
          o.coupled,
          o.training.scale,
          o.training.distillation_weight,
          o.training.cross_entropy_weight};
}

template <class F>
struct FirstOf;
template <class R, class Options, class... In>
struct FirstOf<R (*)(const Options&, In...)> {
  using Arguments = ArgumentsOf<Options>;
};

/// F(options, inputs...) as the kernel of an operator whose schema is (inputs..., *, settings...).
template <auto F, class Settings = typename FirstOf<decltype(F)>::Arguments>
struct SettingsOp;
template <class R, class Options, class... In, R (*F)(const Options&, In...), class... S>
struct SettingsOp<F, std::tuple<S...>> {
  static R call(In... in, S... settings) {
    return F(OptionsFrom<Options>::make(settings...), in...);
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
template <class R, class Options, class... In>
R call_op(const char* name, const Options& options, const In&... in) {
  return std::apply([&](const auto&... settings) { return call<R>(name, in..., settings...); },
                    arguments_of(options));
}

}  // namespace gkd
