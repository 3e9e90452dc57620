import { render } from "preact";
import { App } from "./app";
import { connect } from "./store";
import "./style.css";

const page = document.getElementById("page");
if (page) {
  render(<App />, page);
  connect();
}
