// Tiles of short rows: too short for a register each, they share it. What belongs to a row is made
// with the rows across the lanes; what belongs to an element then runs over a tile as over one
// long row.
#pragma once

#include "noise_cpu.h"
#include "sums_cpu.h"

namespace langevin {
namespace {

constexpr int kTileRows = kTile / 2;
// With fewer columns than this a tile is transposed to be summed.
constexpr int64_t kTransposed = W == 16 ? 16 : 32;

// Sums of rows of Cols = 2^m elements that lie one after another in Cols registers. Evens and odds
// are what block_sum's tree adds last, so the bits are the same.
template <class T, int Cols, class V>
LANGEVIN_INLINE V sum_registers(const V* registers) {
  if constexpr (Cols == 1) {
    return registers[0];
  } else {
    V even[Cols / 2], odd[Cols / 2];
    for (int i = 0; i < Cols / 2; ++i)
      Register<T>::deinterleave(registers[2 * i], registers[2 * i + 1], even[i], odd[i]);
    return sum_registers<T, Cols / 2>(even) + sum_registers<T, Cols / 2>(odd);
  }
}

struct Itself {
  template <class V>
  LANGEVIN_METHOD V operator()(V v) const {
    return v;
  }
};

struct Square {
  template <class V>
  LANGEVIN_METHOD V operator()(V v) const {
    return v * v;
  }
};

// As many rows of Cols elements as fill registers; returns how many.
template <int Cols, class Term, class T, class G>
int64_t whole_registers(const G* g, int64_t rows, T* sums) {
  using V = typename Register<T>::V;
  constexpr int N = Register<T>::lanes;
  int64_t r = 0;
  for (; r + N <= rows; r += N) {
    V v[Cols];
    for (int i = 0; i < Cols; ++i) {
      load(g + r * Cols + i * N, v[i]);
      v[i] = Term()(v[i]);
    }
    store(sums + r, sum_registers<T, Cols>(v));
  }
  return r;
}

// The sums of a tile's rows. `columns` has room for the tile, `sums` for a register more than rows.
template <class Term, class T, class G>
void sum_rows(const G* g, int64_t cols, int64_t rows, T* columns, T* sums) {
  using V = typename Register<T>::V;
  int64_t r = 0;
  if (cols == 1) r = whole_registers<1, Term>(g, rows, sums);
  if (cols == 2) r = whole_registers<2, Term>(g, rows, sums);
  if (cols == 4) r = whole_registers<4, Term>(g, rows, sums);
  if (cols == 8) r = whole_registers<8, Term>(g, rows, sums);
  if (cols == 16) r = whole_registers<16, Term>(g, rows, sums);
  if (r || cols >= kTransposed) {
    for (; r < rows; ++r)
      sums[r] = block_sum<T>(cols, [row = g + r * cols](int64_t j, int64_t n) {
        V v;
        load_up_to(row + j, n, v);
        return Term()(v);
      });
    return;
  }
  // Few and awkward columns: transpose, then the tree of block_sum, column k taking column k + 16,
  // then k + 8, ...
  for (int64_t k = 0; k < cols; ++k)
    for (r = 0; r < rows; ++r)
      columns[k * rows + r] = Term()(static_cast<T>(widen(g[r * cols + k])));
  for (int64_t h = kTransposed / 2; h; h /= 2)
    for (int64_t k = 0; k < h && k + h < cols; ++k)
      for (r = 0; r < rows; ++r) columns[k * rows + r] += columns[(k + h) * rows + r];
  memcpy(sums, columns, rows * sizeof(T));
}

// A coefficient of rows [base, base + rows).
template <class T>
void take(const Coefficient& c, int64_t base, int64_t rows, T* out) {
  if (c.each)
    memcpy(out, static_cast<const T*>(c.each) + base, rows * sizeof(T));
  else
    for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<T>(c.value);
}

// Row values to element values. A store may spill into the next rows, which are written after it,
// and by less than two registers beyond the last.
template <class T>
void spread(const T* row, int64_t cols, int64_t rows, T* element) {
  using V = typename Register<T>::V;
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  if (cols == 1) {
    memcpy(element, row, rows * sizeof(T));
  } else if (cols == 2) {
    constexpr int N = Register<T>::lanes;
    for (int64_t r = 0; r < rows; r += N) {
      V v, low, high;
      load(row + r, v);
      Register<T>::interleave(v, v, low, high);
      store(element + 2 * r, low);
      store(element + 2 * r + N, high);
    }
  } else if (cols <= 8) {
    for (int64_t r = 0; r < rows; ++r) {
      const Four four{row[r], row[r], row[r], row[r]};
      for (int64_t k = 0; k < cols; k += 4) *(Four*)(element + r * cols + k) = four;
    }
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      const V value = Register<T>::broadcast(row[r]);
      for (int64_t k = 0; k < cols; k += Register<T>::lanes) store(element + r * cols + k, value);
    }
  }
}

}  // namespace
}  // namespace langevin
