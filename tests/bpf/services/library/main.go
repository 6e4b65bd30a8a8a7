// A c-shared library: its runtime echoes in any process that loads it, and prints "ready on". True numbers:
// as echo. If it is loaded together with a copy of itself, the process has two runtimes.
package main

import "C"

import "services/kit"

func init() {
	l := kit.Listen("127.0.0.1:0")
	go kit.Serve(l, kit.Echo)
}

func main() {}
