// h2spec's tests of a server of HTTP/2; what became of them as one JSON object at the end.
//
//	h2spec HOST PORT SECONDS        SECONDS: how long a test waits for the server
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// Told is what became of the tests; those that failed are named by their place, as in "http2/5.3.1/2".
type Told struct {
	Passed int               `json:"passed"`
	Failed map[string]string `json:"failed"`
}

func (told *Told) add(group *spec.TestGroup) {
	for _, test := range append(group.Tests, group.StrictTests...) {
		result := test.Result
		if result == nil {
			continue
		}
		if !result.Failed {
			told.Passed++
			continue
		}
		told.Failed[fmt.Sprintf("%s/%d", group.ID(), result.Sequence)] = fmt.Sprintf("%s: %v", test.Desc, result.Error)
	}
	for _, inner := range group.Groups {
		told.add(inner)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return value
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: h2spec HOST PORT SECONDS")
		os.Exit(2)
	}
	asked := &config.Config{
		Host:         os.Args[1],
		Port:         number(os.Args[2]),
		Path:         "/",
		Timeout:      time.Duration(number(os.Args[3])) * time.Second,
		MaxHeaderLen: 4000,
	}
	told := Told{Failed: map[string]string{}}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(asked)
		told.add(group)
	}
	text, _ := json.Marshal(told)
	fmt.Println(string(text))
}
