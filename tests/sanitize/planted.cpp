// One error of each kind that a sanitizer is there to find, to show that it would: planted KIND.
// "none" does the same work and makes none of them.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <thread>

namespace {

int shared = 0;

void add(int times) {
  for (int k = 0; k < times; ++k) shared = shared + 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string kind = argc > 1 ? argv[1] : "";
  // volatile: neither the compiler nor its warnings may know the outcome.
  volatile int size = 8, most = std::numeric_limits<int>::max();
  volatile float huge = 1e20f;
  volatile int* block = new int[size];
  for (int k = kind == "uninitialised" ? 1 : 0; k < size; ++k) block[k] = k;
  int seen = 0;
  if (kind == "heap") seen = block[size];
  if (kind == "signed") seen = most + 1;
  if (kind == "float") seen = static_cast<int>(huge);
  if (block[0] != 0) seen += 1;  // a branch on what was never written, if it was not
  std::thread other(add, 10000);
  if (kind != "race") other.join();
  add(10000);
  if (kind == "race") other.join();
  std::printf("%d %d\n", seen, shared);
  delete[] block;
  return 0;
}
