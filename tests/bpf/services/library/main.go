// A c-shared library: its runtime echoes in whatever process loads it, and says "ready on". True numbers:
// as echo. Loaded with a copy of itself, the process has two runtimes.
package main

import "C"

import "services/kit"

func init() {
	l := kit.Listen("127.0.0.1:0")
	go kit.Serve(l, kit.Echo)
}

func main() {}
