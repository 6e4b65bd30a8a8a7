// Command traceback prints what Go itself reports about its own call stacks: for each stack the return
// addresses, as offsets in the executable, and the frames that they stand for.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
)

type frame struct {
	Function string
	File     string
	Line     int
}

type trace struct {
	Offsets []uint64
	Frames  []frame
}

var traces []trace

type mapping struct{ start, end, offset uint64 }

// code lists the executable's mapped code.
func code() (found []mapping) {
	self, _ := os.Executable()
	file, _ := os.Open("/proc/self/maps")
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 6 && fields[5] == self && strings.Contains(fields[1], "x") {
			start, end, _ := strings.Cut(fields[0], "-")
			found = append(found, mapping{hex(start), hex(end), hex(fields[2])})
		}
	}
	return found
}

func hex(text string) uint64 {
	n, _ := strconv.ParseUint(text, 16, 64)
	return n
}

func inlinedInnermost() { take() }

func inlined(depth int) {
	inlinedInnermost()
	func() {
		inlinedInnermost()
	}()
}

//go:noinline
func take() {
	pcs := make([]uintptr, 64)
	pcs = pcs[:runtime.Callers(1, pcs)]
	var t trace
	for frames, more := runtime.CallersFrames(pcs), true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		t.Frames = append(t.Frames, frame{f.Function, f.File, f.Line})
	}
	for _, pc := range pcs {
		for _, m := range code() {
			if m.start <= uint64(pc) && uint64(pc) < m.end {
				t.Offsets = append(t.Offsets, uint64(pc)-m.start+m.offset)
			}
		}
	}
	traces = append(traces, t)
}

type shape interface{ each(func()) }

type square struct{ sides int }

func (s *square) each(do func()) {
	for i := 0; i < s.sides; i++ {
		do()
	}
}

func twice[T any](do func(T), with T) {
	do(with)
	do(with)
}

func main() {
	inlined(1)
	var s shape = &square{1}
	s.each(func() { inlined(2) })
	twice(inlined, 3)
	sort.Slice([]int{2, 1}, func(i, j int) bool { inlined(4); return i < j })
	done := make(chan bool)
	go func() {
		defer close(done)
		defer inlinedInnermost()
		strings.Map(func(r rune) rune { inlined(5); return r }, "x")
	}()
	<-done
	json.NewEncoder(os.Stdout).Encode(traces)
}
