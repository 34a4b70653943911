// Launchers of a class-sharded call, one stage each; between them the caller lets ranks reduce or
// gather their messages (math/messages.h). As in cuda/launch.h: raw device pointers, one stream, no
// torch, no synchronisation, no allocation.
//
// Problem: `classes` are the rank's and may be 0, `all_classes` the whole row's.
#pragma once

#include "cuda/launch.h"
#include "math/messages.h"

namespace gkd::cuda {

/// -> extremes [rows, kMsgExtremes]
cudaError_t shard_extremes(const Call& call, long long* extremes);

/// -> counts [rows, kBins]
cudaError_t shard_counts(const Call& call, const long long* extremes, std::int32_t* counts);

/// -> histogram [rows, kMsgHistogram]; `search` is null in the first radix pass.
cudaError_t shard_histogram(const Call& call, const long long* extremes, const std::int32_t* counts,
                            const long long* search, long long* histogram);

/// -> next [rows, kSearchFields], cut [rows]
cudaError_t shard_refine(const Call& call, const long long* extremes, const long long* histogram,
                         const long long* search, long long* next, double* cut);

/// Bytes of device scratch that each of the following needs.
std::size_t shard_workspace_bytes(const Call& call);

/// -> moments [rows, kMsgMoments], with cross-entropy [rows, kMsgWithHead]
cudaError_t shard_moments(const Call& call, const double* cut, double* moments, void* workspace);

/// moments [ranks, rows, ...] of all ranks -> gradient as in Results, kl [rows, 2]
cudaError_t shard_gradient(const Call& call, const double* cut, const double* moments,
                           std::int64_t ranks, void* gradient, double* kl, void* workspace);

/// moments and kl [ranks, rows, 2] of all ranks -> loss and grad_scale as in Results
cudaError_t shard_loss(const Call& call, const double* moments, const double* kl,
                       std::int64_t ranks, const Results& results, void* workspace);

}  // namespace gkd::cuda
